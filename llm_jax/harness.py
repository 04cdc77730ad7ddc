"""Model class for lm-evaluation-harness: `python -m llm_jax.harness --model llm_jax …`.

    python -m llm_jax.harness --model llm_jax --model_args folder=runs/gpt --tasks lambada_openai

runs its command line with the additional model `llm_jax`. In Python:
`lm_eval.simple_evaluate(model=Harness("runs/gpt"), tasks=[…])`. Requires `pip install lm-eval`.
"""

from pathlib import Path
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from llm_jax import library
from llm_jax.data import chat
from llm_jax.decode import log_likelihoods

NEW_TOKENS = 256  # default of tasks without a limit


@register_model("llm_jax")
class Harness(TemplateLM):
    """A decoder for the harness, equivalent to its `hf` model of the same Hugging Face folder.

    Args:
      folder: a run folder or Hugging Face folder.
      batch_size: rows per batch.
    """

    def __init__(self, folder: str | Path, batch_size: int | str = 8, **unused: Any):
        super().__init__()
        self.lm, self.batch_size = library.load(folder), int(batch_size)
        self.words, self.length = self.lm.tokenizer, self.lm.model.cfg.max_length

    @property
    def eot_token_id(self) -> int:
        return self.words.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.words.bos_id

    @property
    def tokenizer_name(self) -> str:
        return self.words.fingerprint()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any):
        before, behind = self.words.around("decoder")
        ids = self.words.read(string)
        spelt = add_special_tokens is None and before and ids[: len(before)] == before
        return ids if spelt or add_special_tokens is False else [*before, *ids, *behind]

    def _loglikelihood_tokens(self, requests: list, **_: Any) -> list[tuple[float, bool]]:
        rows = [[*context, *continuation] for _, context, continuation in requests]
        starts = [len(context) for _, context, _ in requests]
        model, params = self.lm.model, self.lm.params
        return log_likelihoods(model, params, rows, starts, batch_size=self.batch_size)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        windows, of = [], []
        for i, (text,) in enumerate(request.args for request in requests):
            ids, length = self.tok_encode(text), self.length
            for pair in utils.get_rolling_token_windows(ids, self.prefix_token_id, length, 1):
                windows.append((None, *utils.make_disjoint_window(pair)))
                of.append(i)
        totals = [0.0] * len(requests)
        for i, (value, _) in zip(of, self._loglikelihood_tokens(windows), strict=True):
            totals[i] += value
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        texts: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(i)
        for places in groups.values():
            settings = normalize_gen_kwargs(requests[places[0]].args[1], NEW_TOKENS)
            count, until = settings["max_gen_toks"], settings["until"]
            warm = settings.get("temperature", float(bool(settings.get("do_sample"))))
            known = {k: settings[k] for k in ("top_k", "top_p", "min_p") if k in settings}
            prompts = [self.tok_encode(requests[i].args[0])[count - self.length :] for i in places]
            samples = self.lm.generate(
                prompts, max_new_tokens=count, stop=until, imported=False,
                temperature=warm, batch_size=self.batch_size, **(known if warm else {}),
            )  # fmt: skip
            for i, sample in zip(places, samples, strict=True):
                text = self.words.decode(sample["tokens"])
                for stop in filter(None, until):
                    text = text.partition(stop)[0]
                texts[i] = text
        return [texts[i] for i in range(len(requests))]

    def apply_chat_template(self, chat_history: list, add_generation_prompt: bool = True) -> str:
        return chat.render(self.words, chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return (self.words.chat_template or chat.DEFAULT) if chat_template else None


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
