"""Causal language modelling with masked prompts: answers, completions, an assistant's turns."""

import dataclasses

import numpy as np

from llm_jax.data import chat
from llm_jax.data.examples import Part, decoder_fields
from llm_jax.objectives import causal_lm, scores


class Completion(causal_lm.CausalLM):
    """A causal language model whose loss and accuracy count scored parts only.

    A record has parts, or a source (the prompt, in objective.prefix and .suffix) and a target, of
    which the second is scored; parts are tokenised one by one. tokens, targets, weights [T] of
    s = [bos] + parts + [eos], weights 1 where the target is of a scored part; eos belongs to the
    last. answer_weights [T], by which accuracy goes, are the same but for eos. What follows the
    last scored token is left out, and so is what a row cannot hold; a document without any is
    dropped.
    """

    reads = ("source", "target")
    fields = (*causal_lm.CausalLM.fields, "answer_weights")
    cut, parts, gold = False, True, ("target",)

    def pieces(self, record):
        """Returns a record's ids in pieces, and whether each is scored."""
        parts = record.get("parts")
        if not parts:
            target = record.get("target", "")
            source = self.ask(record, len(self.tokenizer.encode(target)))
            source = prompt(source, self.config.objective)
            parts = (Part(source, False), Part(target, True))
        middle = [(self.tokenizer.encode(part.text), part.scored) for part in parts]
        return [([self.tokenizer.bos_id], False), *middle,
                ([self.tokenizer.eos_id], parts[-1].scored)]  # fmt: skip

    def ask(self, record, new):
        """The source as a prompt; of one too long for a row the end is cut off."""
        encode = self.tokenizer.encode
        around = len(encode(prompt("", self.config.objective))) + 2  # and what begins and ends
        ids, room = encode(record["source"]), self.config.model.max_length - new - around
        return record["source"] if len(ids) <= room else self.tokenizer.decode(ids[: max(room, 0)])

    def score(self, records, answers):
        gold, guess = [x.get("target") for x in records], [x["text"] for x in answers]
        return scores.texts(self.config.eval.scores, gold, guess)

    def example(self, piece, rng, elsewhere):
        ids, scored = zip(*self.pieces(piece), strict=True)
        weights = np.repeat(np.float32(scored), [len(some) for some in ids])[1:]
        fields = decoder_fields(np.concatenate(ids).astype(np.int32)) | {"weights": weights}
        end = np.isin(fields["targets"], chat.end_ids(self.tokenizer))
        fields["answer_weights"] = np.where(end, np.float32(0), weights)
        places = np.flatnonzero(weights[: self.config.model.max_length])
        return {name: x[: places[-1] + 1] for name, x in fields.items()} if len(places) else None


def prompt(text, cfg):
    """Puts objective.prefix before a source, and objective.suffix behind it."""
    return cfg.prefix + text + cfg.suffix


OBJECTIVE = dataclasses.replace(
    causal_lm.OBJECTIVE,
    name="completion",
    examples=Completion,
    refuse=lambda config: scores.check(config.eval.scores),
    prompt=prompt,
    writes=True,
)


class Chat(Completion):
    """A causal language model of whole conversations whose loss counts the assistant's turns only.

    A record has messages, [{"role": …, "content": …}]; the tokenizer's chat template makes them a
    text (data.chat.DEFAULT, where it has none), and says which of it is a reply. A reply's end is
    learned, and not counted by accuracy.
    """

    reads = ("messages",)
    parts, gold = False, ()
    chat_template = chat.DEFAULT

    @classmethod
    def specials(cls, config):
        return chat.MARKS

    def room(self, counts):
        longest = self.config.model.max_length
        return {"conversations, their template not counted,": (counts["messages"], longest)}

    def ask(self, record, new):
        """The messages before the last reply, without the oldest where a row cannot hold all."""
        messages = record["messages"]
        end = len(messages) - (messages[-1]["role"] == "assistant")
        return chat.fitted(self.tokenizer, messages[:end], self.config.model.max_length - new)

    def score(self, records, answers):
        gold, guess = [x["messages"][-1]["content"] for x in records], [x["text"] for x in answers]
        return scores.texts(self.config.eval.scores, gold, guess)

    def pieces(self, record):
        return chat.scored(self.tokenizer, record["messages"])


CHAT = dataclasses.replace(
    OBJECTIVE,
    name="chat",
    examples=Chat,
    prompt=lambda text, cfg: [{"role": "user", "content": text}],
)
