"""Opacity: attribution and its faithfulness; logit lens, direct attribution, patching."""

import html
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from llm_jax import config as configs
from llm_jax import models
from llm_jax.audit.attribution import METHODS, Reader, Text, copies, log_odds
from llm_jax.audit.limit import Limit, Picture, Results, heat_map, panels
from llm_jax.audit.report import page_of
from llm_jax.audit.statistics import bootstrapped, mean, ratio, share
from llm_jax.audit.subject import Subject, needs
from llm_jax.config import ConfigError
from llm_jax.files import write_text
from llm_jax.models.trace import token_vectors, trace
from llm_jax.sweep.figures import styles

TEXTS, SHOWN = 16, 4  # number of texts measured, and of those with a page
SHARES = np.linspace(0, 1, 11)  # fractions of tokens removed or inserted
HALF = (SHARES > 0) & (SHARES <= 0.5)


def measure(subject: Subject) -> dict:
    """Measures the first tokens of some validation texts."""
    reader = Reader(subject)
    texts = reader.texts(subject.texts())[:TEXTS]
    if not texts:
        raise ConfigError("audit: no validation text has 4 tokens")
    drawn = jax.jit(models.init_params, static_argnums=0)(reader.model, jax.random.key(0))
    scores, figures, curves = {}, [], {}
    for name, method in METHODS.items():
        try:
            scores[name] = [method(reader, text, reader.params) for text in texts]
        except ConfigError:  # attention without weights
            continue
        found = [faithfulness(reader, text, s) for text, s in zip(texts, scores[name], strict=True)]
        deleted, inserted = (np.array(x) for x in zip(*found, strict=True))
        lost = lambda x: (x[:, :1] - x)[:, HALF].mean(1)
        kept = lambda whole, x: (whole - x)[:, HALF].mean(1)
        curves[name] = {"deletion": deleted.mean(0).tolist(),
                        "insertion": inserted.mean(0).tolist()}  # fmt: skip
        again = [method(reader, text, drawn) for text in texts]
        alike = [_alike(*x) for x in zip(texts, scores[name], again, strict=True)]
        figures += [
            mean(f"{name}: comprehensiveness", lost(deleted), "probability"),
            mean(f"{name}: sufficiency (lower is better)", kept(deleted[:, :1], inserted),
                 "probability"),
            mean(f"{name}: rank correlation with randomised weights", alike),
        ]
    sums = [x.sum() for x in scores["integrated gradients"]]
    ends = [reader.score(t, np.stack([np.ones_like(t.free), ~t.free])) for t in texts]
    figures.append(mean("integrated gradients: sum against the difference of scores, error",
                        np.abs(sums + np.diff(ends).ravel()), "log p / (1 - p)"))  # fmt: skip
    layers, answer = _by_layer(reader, texts)
    return {
        "figures": figures + layers, **answer, "curves": curves,
        "agreement": agreement(texts, scores), "texts": [
            {"pieces": t.pieces, "answer": _named(subject, t.target),
             "scores": {name: s[i][: len(t.pieces)].tolist() for name, s in scores.items()}}
            for i, t in enumerate(texts[:SHOWN])],
    }  # fmt: skip


def faithfulness(reader: Reader, text: Text, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deletion and insertion curves: the answer's probability as the top tokens are removed, added.

    At each of SHARES of the tokens (Petsiuk 2018). Comprehensiveness and sufficiency are the mean
    decreases for up to half of the tokens (DeYoung 2020, 4.2).
    """
    places = np.flatnonzero(text.free)
    places = places[np.argsort(-scores[places], kind="stable")]
    seen = np.ones((2, len(SHARES), reader.length), bool)
    seen[1, :, text.free] = False
    for i, part in enumerate(SHARES):
        first = places[: round(part * len(places))]
        seen[0, i, first], seen[1, i, first] = False, True
    return tuple(reader.probability(text, seen.reshape(-1, reader.length)).reshape(2, -1))


def agreement(texts: list[Text], scores: dict[str, list]) -> dict[str, dict[str, float]]:
    """Returns the mean Spearman rank correlation between methods over texts."""
    both = lambda a, b: [_alike(*x) for x in zip(texts, scores[a], scores[b], strict=True)]
    return {a: {b: float(np.mean(both(a, b))) for b in scores} for a in scores}


def _alike(text, a, b):
    a, b = a[text.free], b[text.free]
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b)[0])


def _named(subject: Subject, target: int) -> str:
    labels = subject.config.data.labels
    return labels[target] if labels else repr(subject.lm.tokenizer.decode([target]))


def _by_layer(reader: Reader, texts: list[Text]) -> tuple[list[dict], dict]:
    """Returns figures and curves of the logit lens, direct logit attribution and patching."""
    lens, patched, effect, parts, names = [], [], [], [], components(reader)
    for text in texts:
        found = np.asarray(logit_lens(reader, reader.params, text.batch))[:, 0]
        lens.append(found.argmax(-1) == text.target)
        whole = np.ones((1, reader.length), bool)
        left = reader.score(text, ~np.eye(reader.length, dtype=bool))
        left = np.where(text.free, left, np.inf)  # without the most important token
        gone = int(left.argmin())
        odds = patch(reader, reader.params, text.batch, gone, text.read, text.target)
        patched.append(np.asarray(odds) - left[gone])
        effect.append(reader.score(text, whole)[0] - left[gone])
        if names:
            parts.append(direct(reader, reader.params, text.batch, text.target))
    lens, patched, effect = np.array(lens), np.array(patched), np.array(effect)
    figures = [share(f"logit lens after layer {i}: says the last layer's answer", hits)
               for i, hits in enumerate(lens.T)]  # fmt: skip
    for at, name in enumerate(("the token that matters most", "the position that is read")):
        for i, x in enumerate(patched[:, :, at].T, start=1):
            figures.append(bootstrapped(f"patching before layer {i}, {name}", ratio, x, effect,
                                        unit="of its effect"))
    figures += [mean(f"direct logit attribution: {name}", x, "logits")
                for name, x in zip(names, np.array(parts).T, strict=True)]  # fmt: skip
    restored = (patched.sum(0) / effect.sum()).T.tolist()
    return figures, {"lens": lens.mean(0).tolist(), "restored": restored}


@partial(jax.jit, static_argnums=0)
def logit_lens(reader: Reader, params: Any, batch: dict) -> jax.Array:
    """Logit lens: logits [L + 1, B, C] of each layer's input (nostalgebraist 2020)."""
    hidden = trace(reader.model, params, batch).hidden
    return jax.lax.map(lambda x: reader.answer(params, batch, output=x), hidden)


@partial(jax.jit, static_argnums=0)
def patch(
    reader: Reader, params: Any, batch: dict, gone: int, read: int, target: int
) -> jax.Array:
    """Activation patching (Meng 2022): scores [L, 2] of a text without the token at `gone`.

    Each restores a layer's input at one position, `gone` or `read`, from the full text.
    """
    own = token_vectors(reader.model, params, batch["tokens"])
    without = own * (jnp.arange(reader.length) != gone)[:, None]
    whole, spoilt = (trace(reader.model, params, batch, vectors=x).hidden[:-1, 0]
                     for x in (own, without))  # fmt: skip
    L, D = len(whole), whole.shape[-1]
    layer, place = jnp.repeat(jnp.arange(L), 2), jnp.tile(jnp.stack([gone, read]), L)
    difference = (whole - spoilt)[layer, place]
    changes = jnp.zeros((L, 2 * L, reader.length, D), difference.dtype)
    changes = changes.at[layer, jnp.arange(2 * L), place].set(difference)
    batch, vectors = copies((batch, without), 2 * L)
    logits = reader.answer(params, batch, vectors=vectors, changes=changes)
    return log_odds(logits, target).reshape(L, 2)


def components(reader: Reader) -> list[str]:
    """Returns the names of the components of the last hidden state; none for post-norm models."""
    cfg = reader.model.cfg
    if reader.classes or cfg.norm_place == "post":
        return []
    names = ["embeddings"]
    for i, layer in enumerate(configs.layers(cfg, cfg.num_layers), start=1):
        both = layer.num_experts or layer.feed_forward
        names += [f"layer {i}'s {part}" for part in ("attention", "feed-forward")[: 1 + bool(both)]]
    return names


@partial(jax.jit, static_argnums=0)
def direct(reader: Reader, params: Any, batch: dict, target: int) -> jax.Array:
    """Direct logit attribution: each component's contribution to the target logit (Elhage 2021).

    The final norm is linear for a fixed divisor s, that of the sum: N(c) s(c) / s(sum). The
    contributions sum to the logit minus that of a zero vector.
    """
    cfg, kept = reader.model.cfg, trace(reader.model, params, batch)
    parts = jnp.stack([kept.hidden[0], *(x for layer in kept.branches for x in layer)])

    def spread(x):
        x = x - (x.mean(-1, keepdims=True) if cfg.norm == "layernorm" else 0)
        return jnp.sqrt((x**2).mean(-1) + cfg.norm_epsilon)

    last = (batch["segment_ids"].sum(1) - 1)[0]
    logit = lambda x: reader.answer(params, batch, output=x)[0, target]
    scale = spread(parts)[:, 0, last] / spread(kept.hidden[-1])[0, last]
    return (jax.lax.map(logit, parts) - logit(jnp.zeros_like(parts[0]))) * scale


def draw(results: Results, folder: Path) -> list[Picture]:
    """Draws faithfulness, agreement, the answer by layer, and pages of some texts."""
    pictures = []
    for number, (run, result) in enumerate(results.items()):
        of = f" of {run}" * (len(results) > 1)
        pictures.append(_faithfulness(f"faithfulness-{number}", of, result, folder))
        for i, text in enumerate(result["texts"]):
            file = f"text-{number}-{i}.html"
            write_text(folder / file, page_of(f"Attribution{of}", _coloured(text)))
            pictures.append(Picture(file, f"Text {i + 1}{of}: tokens by each method"))
    with panels(folder, "layers", 2) as axes:
        look = styles(results)
        for run, result in results.items():
            axes[0].plot(result["lens"], marker="o", label=run, **look[run])
            for at, mark in enumerate("os"):
                where = ("token", "position read")[at]
                axes[1].plot(range(1, len(result["lens"])), result["restored"][at], marker=mark,
                             label=f"{run}, {where}", **look[run])  # fmt: skip
        axes[0].set(xlabel="layers read", ylabel="share with the final answer", ylim=(-0.03, 1.03))
        for ax in axes:
            ax.xaxis.get_major_locator().set_params(integer=True)
        axes[1].set(xlabel="patched before layer", ylabel="share of the effect restored")
        axes[1].set_ylim(bottom=min(axes[1].get_ylim()[0], -0.03))  # small differences look small
    caption = ("Left: the logit lens. Right: the most important token is removed, and one layer's "
               "input is restored, at that token or at the read position.")
    return [*pictures, Picture("layers.png", caption)]


def _faithfulness(name: str, of: str, result: dict, folder: Path) -> Picture:
    with panels(folder, name, 3) as axes:
        look = styles(result["curves"])
        for method, curves in result["curves"].items():
            for ax, kind in zip(axes, ("deletion", "insertion"), strict=False):
                ax.plot(100 * SHARES, curves[kind], label=method, **look[method])
                ax.set(xlabel=f"% of tokens, {kind}", ylabel="probability of the answer")
        names = list(result["agreement"])
        table = [[row[x] for x in names] for row in result["agreement"].values()]
        heat_map(axes[2], table, names, names, least=-1)
        axes[2].tick_params("x", rotation=90)
    return Picture(f"{name}.png", f"Faithfulness{of}: top tokens removed (left: lower is "
                   "better) or added (middle: higher is better). Right: rank correlation between "
                   "methods.")  # fmt: skip


def _coloured(text: dict) -> str:
    """Renders the tokens of each method, on blue if they support the answer, else on vermilion."""
    rows = [f"<h1>Answer: {html.escape(text['answer'])}</h1><p>Blue supports it, vermilion "
            "opposes it, relative to the strongest token; hover to see the number.</p>"]
    for method, scores in text["scores"].items():
        most = max(map(abs, scores)) or 1.0
        cells = []
        for piece, score in zip(text["pieces"], scores, strict=True):
            colour = "0,114,178" if score > 0 else "213,94,0"
            shade = f"background:rgba({colour},{0.7 * abs(score) / most:.2f})"
            cells.append(f'<span style="{shade};padding:.1em .2em" title="{score:.4g}">'
                         f"{html.escape(piece)}</span>")
        rows.append(f"<p><b>{method}</b><br>{' '.join(cells)}</p>")
    return "\n".join(rows)


LIMIT = Limit(
    "opacity",
    "The tokens that determine the answer, by five methods (and a random baseline), and their "
    "faithfulness; the layers that decide: logit lens, direct logit attribution, patching.",
    needs("words", "classes", hidden=True),
    measure,
    draw,
)
