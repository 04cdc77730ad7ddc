"""Tests of the lm-evaluation-harness model against its `hf` model on the same folder."""

import json

import pytest

from tests.hub.test_tokenizer_matrix import trained

pytestmark = pytest.mark.slow
ROWS = [
    {"question": "The cat sat on", "choices": [" the mat", " a dog and a cat"], "gold": 0},
    {"question": "it said: x is", "choices": [" 3", " the dog ran away today"], "gold": 1},
    {"question": "a naïve café has ", "choices": ["no", "many doors"], "gold": 1},
]
COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
doc_to_text: "{{question}}"
"""
TASKS = {
    "choice": COMMON + """task: choice
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "write": COMMON + """task: write
output_type: generate_until
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e", "t"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
    "roll": COMMON + """task: roll
output_type: loglikelihood_rolling
doc_to_target: "{{question}} {{choices[1]}} {{question}} {{question}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
""",
}


def test_numbers_are_those_of_the_hf_model(tmp_path):
    lm_eval, torch = pytest.importorskip("lm_eval"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from lm_eval.tasks import TaskManager

    from llm_jax.harness import Harness

    folder = tmp_path / "model"
    folder.mkdir()
    trained("bytes", ["<|endoftext|>"]).save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>",
             "bos_token": "<|endoftext|>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ends = {"eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id}
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=4, n_positions=32, vocab_size=len(words), **ends
    )
    theirs = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.4)
    theirs.save_pretrained(folder)

    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "tasks").mkdir()
    for name, text in TASKS.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text % (tmp_path / "rows.jsonl"))

    def numbers(model, **args):
        manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
        return lm_eval.simple_evaluate(
            model=model, tasks=[*TASKS], num_fewshot=0, bootstrap_iters=0, task_manager=manager,
            **args,
        )  # fmt: skip

    ours = numbers(Harness(folder))
    right = numbers("hf", model_args={"pretrained": str(folder)}, device="cpu", batch_size=1)
    for task in TASKS:
        for name, value in right["results"][task].items():
            if isinstance(value, float):
                assert ours["results"][task][name] == pytest.approx(value, rel=1e-4), (task, name)
        for one, other in zip(ours["samples"][task], right["samples"][task], strict=True):
            for a, b in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
                a, b = (x if isinstance(x, tuple | list) else [x] for x in (a, b))
                assert list(a) == [x if isinstance(x, str | bool) else pytest.approx(x, abs=1e-4)
                                   for x in b]  # fmt: skip
