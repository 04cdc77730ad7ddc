"""Causal language modelling with masked prompts: completions, chats, preferences (DPO)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.data import chat
from llm_jax.data.examples import Part, apart, decoder_fields
from llm_jax.objectives import causal_lm, scores
from llm_jax.objectives.cross_entropy import token_losses
from llm_jax.objectives.objective import count_rows, rows, sums

SIDES = ("chosen", "rejected")


class Completion(causal_lm.CausalLM):
    """Completion examples: loss and accuracy count scored parts only.

    A record has parts, or a source (the prompt, between objective.prefix and .suffix) and a scored
    target; parts are tokenised separately. tokens, targets, weights [T] of s = [bos] + parts +
    [eos]; weights are 1 if the target is in a scored part, where eos belongs to the last part.
    answer_weights [T], for accuracy, are the same without eos. Tokens after the last scored one, or
    beyond the row, are dropped, and so are documents without scored tokens.
    """

    reads = ("source", "target")
    fields = (*causal_lm.CausalLM.fields, "answer_weights")
    cut, parts, gold = False, True, ("target",)

    def pieces(self, record):
        """Returns the ids of each part of a record, and whether it is scored."""
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
        """Returns the source as a prompt, truncated at its end to fit a row."""
        encode = self.tokenizer.encode
        around = len(encode(prompt("", self.config.objective))) + 2  # bos and eos
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
    """Adds objective.prefix before and objective.suffix after a source."""
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
    """Chat examples: causal LM of conversations with a loss on the assistant's turns only.

    A record has messages, [{"role": …, "content": …}]. The tokenizer's chat template (default
    data.chat.DEFAULT) formats them and marks the replies. The end token of a reply counts for the
    loss but not for accuracy.
    """

    reads = ("messages",)
    parts, gold = False, ()
    chat_template = chat.DEFAULT

    @classmethod
    def specials(cls, config):
        return chat.MARKS

    def room(self, counts):
        longest = self.config.model.max_length
        return {"conversations, without template,": (counts["messages"], longest)}

    def ask(self, record, new):
        """Returns the messages before the last reply, without the oldest if they do not fit."""
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


class Preference(Completion):
    """Examples of direct preference optimisation (DPO; Rafailov 2023, arXiv:2305.18290).

    A row holds the prompt with the chosen answer, then the prompt with the rejected one: tokens,
    targets, weights [T] as in Completion, with segments 1 and 2. reference [2]: the log-probability
    of each answer under the initial model, from the record. Records of which both do not fit a row
    are dropped.
    """

    reads = ("prompt", *SIDES)
    fields = (*Completion.fields, "side")
    parts, gold = False, ()
    row, too_long = staticmethod(apart), "left out"

    @classmethod
    def lengths(cls, config):
        return super().lengths(config) | {"reference": 2}

    def room(self, counts):
        """Counts the prompt (at most half a row) twice, and both answers with their end tokens."""
        longest = self.config.model.max_length
        prompt = min(counts["prompt"] + 1, longest // 2)
        return {"pairs": (2 * prompt + sum(counts[side] for side in SIDES), longest)}

    def sides(self, record):
        asked = lambda side: {"source": record["prompt"], "target": record[side]}
        return [super(Preference, self).example(asked(side), None, None) for side in SIDES]

    def example(self, piece, rng, elsewhere):
        sides = self.sides(piece)
        if any(x is None for x in sides):
            return None
        fields = {name: np.concatenate([x[name] for x in sides]) for name in sides[0]}
        fields["side"] = np.repeat([1, 2], [len(x["tokens"]) for x in sides]).astype(np.int32)
        fields["reference"] = np.array(piece.get("reference", (0, 0)), np.float32)
        return fields if len(fields["side"]) <= self.config.model.max_length else None

    def ask(self, record, new):
        """Returns the prompt; with an answer it must fit half a row."""
        return super().ask(record, new + self.config.model.max_length // 2)


def log_probabilities(outputs, batch):
    """Returns the log-probabilities of the chosen and the rejected answer, [B, 2]."""
    each = token_losses(
        outputs.hidden, outputs.matrix, batch["targets"], bias=outputs.bias, softcap=outputs.softcap
    )
    of = lambda side: -(each * batch["weights"] * (batch["side"] == side)).sum(-1)
    return jnp.stack([of(1), of(2)], axis=-1)


def losses(outputs, batch, cfg):
    """DPO loss -log sigmoid(beta m), m = log p/p_ref(chosen) - log p/p_ref(rejected) (eq. 7).

    margin: beta m, the difference of the implicit rewards; accuracy: whether m > 0.
    """
    gain = log_probabilities(outputs, batch) - batch["reference"]
    margin = cfg.beta * (gain[:, 0] - gain[:, 1])
    each = {"loss": jax.nn.softplus(-margin), "margin": margin, "accuracy": margin > 0}
    metrics = sums(each, rows(batch))
    return {"rows": metrics["loss"][0]}, metrics


PREFERENCE = dataclasses.replace(
    OBJECTIVE,
    name="preference",
    examples=Preference,
    weights=count_rows,
    losses=losses,
    needs={"data.packing": ("none",)},
    refuse=lambda config: None,
    reference=True,
    writes=False,
)
