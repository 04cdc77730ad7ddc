"""Tests that conversations give the same text and ids as in transformers."""

import numpy as np
import pytest

from llm_jax.config import ConfigError
from llm_jax.data import chat, tokenizers
from llm_jax.data.tokenizers import Bytes, HuggingFace

transformers = pytest.importorskip("transformers")

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <there>  "},
    {"role": "assistant", "content": "Hello!\nHow are you?"},
    {"role": "user", "content": "Good — you?"},
    {"role": "assistant", "content": "Fine"},
]
TURN = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
CHATML = (
    "{%- for message in messages %}" + TURN + "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
MARKED = """{% for message in messages %}
{% if message.role == 'assistant' %}
A:{% generation %}{{ message.content | trim }}{{ eos_token }}{% endgeneration %}

{% else %}
{{ message.role | upper }}: {{ message.content | tojson }}
{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"""
BRACKETS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "marked": MARKED, "brackets": BRACKETS, "default": chat.DEFAULT}


def tokenizer(template):
    """The same tokenizer, ours and theirs."""
    specials = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    made = tokenizers._train_bpe(["Hello, how are you? Fine. Be brief!"] * 3, 300, specials)
    ids = [made.specials[name] for name in ("<s>", "</s>", "</s>")]
    ours = HuggingFace(made.backend(), *ids)
    ours.roles = {"bos_token": "<s>", "eos_token": "</s>"}
    ours.chat_template, ours.generation = template, {"eos_token_id": ours.specials["<|im_end|>"]}
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=made.backend(), **ours.roles)
    theirs.chat_template = template
    return ours, theirs


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_ids_are_those_of_transformers(name):
    ours, theirs = tokenizer(TEMPLATES[name])
    for n in range(1, len(TALK) + 1):
        for reply in (False, True):
            how = {"tokenize": False, "add_generation_prompt": reply}
            right = theirs.apply_chat_template(TALK[:n], **how)
            assert chat.render(ours, TALK[:n], reply) == right
    ids = theirs.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    assert chat.prompt(ours, TALK) == ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_replies_are_scored_with_what_ends_them(name):
    ours, theirs = tokenizer(TEMPLATES[name])
    pieces = chat.scored(ours, TALK)
    whole = np.concatenate([ids for ids, _ in pieces]).tolist()
    text = theirs.apply_chat_template(TALK, tokenize=False)
    assert theirs.decode(whole) == theirs.decode(theirs(text, add_special_tokens=False).input_ids)
    replies = [theirs.decode(ids) for ids, scored in pieces if scored]
    end = "<|im_end|>" if name == "chatml" else "</s>"
    blank = " " if name == "brackets" else ""
    assert replies == [f"{blank}{m['content']}{end}" for m in TALK if m["role"] == "assistant"]
    if name == "marked":  # as transformers' own mask has it
        mask = theirs.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
        flags = [flag for ids, scored in pieces for flag in [int(scored)] * len(ids)]
        assert sum(flags) == sum(mask["assistant_masks"])


def test_a_template_that_rewrites_earlier_turns_is_refused():
    ours, _ = tokenizer("{{ messages | length }}" + CHATML)
    with pytest.raises(ConfigError, match="depends on later turns"):
        chat.scored(ours, TALK)


@pytest.mark.parametrize("messages", [["a", 3], [{"role": "user"}], [{"content": "a"}], 3])
def test_what_is_no_conversation_is_refused(messages):
    with pytest.raises(ConfigError, match="chat template: cannot render"):
        chat.render(Bytes(), messages)


def test_a_plain_line_is_the_users_message():
    asked = [{"role": "user", "content": "x"}]
    assert chat.render(Bytes(), "x") == chat.render(Bytes(), asked)


def test_a_template_may_refuse():
    ours, _ = tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ConfigError, match="roles must alternate"):
        chat.render(ours, TALK)


def test_a_tokenizer_of_ones_own_has_marks_of_one_token():
    ours = Bytes(chat.MARKS)
    ids = chat.prompt(ours, TALK[1:2])
    user, assistant = (ours.specials[f"<|{role}|>"] for role in ("user", "assistant"))
    text = list(b"Hi <there>  ")
    assert ids == [ours.bos_id, user, 10, *text, ours.eos_id, assistant, 10]
    assert ids == chat.prompt(ours, ["Hi <there>  "])  # texts are turns
