"""Chat fine-tuning: the loss counts the assistant's replies of a conversation."""

import dataclasses

from llm_jax.data import chat
from llm_jax.objectives import completion, scores


class Chat(completion.Completion):
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


OBJECTIVE = dataclasses.replace(
    completion.OBJECTIVE,
    name="chat",
    examples=Chat,
    prompt=lambda text, cfg: [{"role": "user", "content": text}],
)
