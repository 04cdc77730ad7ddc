"""Tests that the loss of a conversation covers only the assistant's turns."""

import json

import numpy as np
import pytest

import launch
import llm_jax
from llm_jax import config as configs
from llm_jax import objectives
from llm_jax.data import chat, tokenizers
from llm_jax.data.tokenizers import Bytes
from llm_jax.decode import stream
from llm_jax.hub import text

TALK = [("Hi", "Hello"), ("How are you?", "Fine"), ("Bye", "Bye!")]


def messages(*turns):
    roles = ("user", "assistant")
    return [{"role": r, "content": t} for turn in turns for r, t in zip(roles, turn, strict=True)]


def test_what_is_learned_is_replies_and_their_ends():
    config = configs.base()
    config.objective.name, config.model.max_length = "chat", 200
    tokenizer = Bytes(chat.MARKS)
    examples = objectives.get("chat").examples(tokenizer, config)
    (row,) = examples.examples({"messages": messages(*TALK)}, None, None)
    learned = row["targets"][row["weights"] > 0]
    right = [i for _, reply in TALK for i in [*reply.encode(), tokenizer.eos_id]]
    assert learned.tolist() == right
    answers = row["targets"][row["answer_weights"] > 0]
    assert answers.tolist() == [i for _, reply in TALK for i in reply.encode()]
    # What a reply is learned behind is what it is asked for behind.
    at = np.flatnonzero(row["weights"])[len("Hello") + 1]
    assert row["tokens"][: at + 1].tolist() == chat.prompt(tokenizer, messages(*TALK)[:3])
    config.model.max_length = 7  # no room for a reply
    assert examples.examples({"messages": messages(*TALK)}, None, None) == []
    assert examples.examples({"messages": messages(*TALK)[:1]}, None, None) == []


@pytest.mark.parametrize("kind", ["bytes", "bpe", "wordpiece"])
def test_the_vocabulary_is_not_listed_for_a_conversation(kind, monkeypatch):
    about = configs.ConfigDict({"name": kind, "vocab_size": 300, "specials": chat.MARKS})
    tokenizer = tokenizers.build(about, ["Hello, how are you? Fine!"])
    text = chat.render(tokenizer, messages(*TALK))
    bos, eos = (tokenizer.pieces()[i] for i in (tokenizer.bos_id, tokenizer.eos_id))
    assert text.startswith(bos) and text[len(bos) :].count(eos) == 2 * len(TALK)
    monkeypatch.setattr(type(tokenizer), "pieces", lambda self: pytest.fail("listed"))
    assert chat.render(tokenizer, messages(*TALK)) == text


def test_transformers_renders_the_default_template_of_an_export(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = Bytes(chat.MARKS)
    tokenizer.chat_template = chat.DEFAULT
    text.save(tokenizer, tmp_path, configs.resolve(configs.base().model, tokenizer.vocab_size))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    asked = messages(*TALK)[:3]
    ids = theirs.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert ids == list(chat.prompt(tokenizer, asked))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has learned three conversations by heart."""
    folder = tmp_path_factory.mktemp("chat")
    rows = [json.dumps({"messages": messages(turn)}) for turn in TALK] * 4
    rows += [json.dumps({"messages": messages(*TALK)})] * 4
    (folder / "talk.jsonl").write_text("\n".join(rows))
    (folder / "other.jsonl").write_text(json.dumps({"messages": messages(TALK[1], TALK[2])}))
    sizes = {"num_layers": 1, "embed_dim": 64, "num_heads": 2, "max_length": 96}
    keys = {f"model.{name}": size for name, size in sizes.items()} | {
        "data.train": folder / "talk.jsonl", "data.validation": folder / "other.jsonl",
        "tokenizer.name": "bytes", "data.batch_size": 8, "train.steps": 120,
        "optimizer.learning_rate": 1e-2, "optimizer.warmup_steps": 10, "eval.every": 120,
        "checkpoint.every": 120,
    }  # fmt: skip
    command = ["train", "--config=configs/finetune/chat.py", f"--workdir={folder / 'run'}"]
    assert launch.main(command + [f"--config.{key}={value}" for key, value in keys.items()]) == 0
    return folder / "run"


@pytest.mark.slow
def test_a_conversation_through_the_command(run, monkeypatch, capsys):
    assert tokenizers.load(run / "tokenizer").chat_template == chat.DEFAULT
    lines = iter(["Hi", "How are you?", "/reset", "Bye", "/exit", "Hi"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    command = ["chat", f"--workdir={run}", "--json", "--temperature=0", "--max_new_tokens=20"]
    capsys.readouterr()
    assert launch.main(command) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    assert shown == ["Hello", "Fine", "Bye!"]
    assert json.loads(last)["messages"] == messages(TALK[2])


@pytest.mark.slow
def test_a_reply_in_python_and_by_generate(run, tmp_path, capsys):
    lm = llm_jax.load(run)
    asked = [*messages(TALK[0]), {"role": "user", "content": "How are you?"}]
    assert lm.chat(asked, temperature=0.0, max_new_tokens=20) == "Fine"
    # A prompt that is a text is a user's message.
    assert lm.generate(["Bye"], temperature=0.0)[0]["completion"] == "Bye!"
    args = lm.model, lm.params, lm.tokenizer, asked
    for stop, reply in ((["n", "zz"], "Fi"), (["inx"], "Fine"), (["ine"], "F")):
        pieces = list(stream(*args, temperature=0.0, max_new_tokens=20, stop=stop))
        assert "".join(pieces) == reply
        assert len(pieces) > 1 or len(reply) == 1
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"messages": asked}))
    command = ["generate", f"--workdir={run}", f"--prompts={file}", "--temperature=0"]
    assert launch.main(command) == 0
    assert ">>> How are you?\nFine" in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_ends_a_reply_and_not_the_program(run, monkeypatch, capsys):
    lines = iter(["Hi", "How are you?", None])

    def read(_):
        if (line := next(lines)) is None:
            raise EOFError
        return line

    def interrupted(*args, **options):
        yield "He"
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("llm_jax.decode.stream", interrupted)
    assert launch.main(["chat", f"--workdir={run}"]) == 0
    assert capsys.readouterr().out.splitlines() == ["He", "He"]
