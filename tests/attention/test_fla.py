"""Recurrent kinds of attention against fla-core's naive references, PyTorch on a CPU.

A kind that fla has is a function here of its name: the arguments of attend as tensors, of one
segment -> (output, last state or None), by what fla.ops has for it.
"""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm_jax import attention
from llm_jax.attention import Mask
from tests.attention.test_variants import B, N, call, drawn, reads

FLA = importlib.util.find_spec("fla")
pytestmark = pytest.mark.skipif(FLA is None, reason="needs fla-core, see requirements-dev.txt")
T = 77
SEGMENTS = np.array([[1] * 30 + [2] * 37 + [0] * 10, [1] * T], np.int32)
PIECES = [(0, 0, 30), (0, 30, 67), (1, 0, T)]  # row, start and stop of its segments
REFERENCES = {}


@functools.cache
def fla(name):
    """A module of fla.ops by its file, as importing the package asks for Triton and a GPU."""
    path = Path(FLA.submodule_search_locations[0], "ops", *name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"fla_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(f):
    REFERENCES[f.__name__] = f
    return f


def heads(x):
    """Key heads [B, T, K, H] beside their query heads."""
    return x.repeat_interleave(N // x.shape[2], dim=2)


def normed(y, scale):
    return F.rms_norm(y, y.shape[-1:], scale, eps=1e-5)


@reference
def gated_linear(a):
    run = fla("simple_gla.naive").naive_recurrent_simple_gla
    y, state = run(a["query"], heads(a["key"]), heads(a["value"]), F.logsigmoid(a["decay"]) / 16)
    return normed(y, a["norm"]), state


@reference
def delta(a):
    unit = lambda x: x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
    run = fla("gated_delta_rule.naive").naive_recurrent_gated_delta_rule
    decay = -a["log_speed"].exp() * F.softplus(a["decay"])
    arrays = unit(a["query"]), unit(heads(a["key"])), heads(a["value"])
    y, state = run(*arrays, a["rate"].sigmoid(), decay, output_final_state=True)
    return normed(y, a["norm"]), state


def along(x):
    return x.ndim > 2 and x.shape[1] == T


def part(arguments, start, stop, rows=slice(None)):
    """Arguments of attend, of some tokens only."""
    return {k: x[rows, start:stop] if along(x) else x for k, x in arguments.items()}


def tensors(name):
    return {k: torch.tensor(np.asarray(x), requires_grad=True) for k, x in drawn(name, T).items()}


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("name", REFERENCES)
def test_packed_segments_equal_separate_calls(name):
    """Values, and gradients of all arguments."""
    mask, real = Mask(SEGMENTS, SEGMENTS, causal=True), (SEGMENTS > 0)[..., None, None]

    @jax.jit
    def run(a):
        y = call(name, a, mask) * real
        return jnp.sin(y).sum(), y

    (_, y), gradients = jax.value_and_grad(run, has_aux=True)(drawn(name, T))
    a, total = tensors(name), 0
    for row, start, stop in PIECES:
        theirs, _ = REFERENCES[name](part(a, start, stop, slice(row, row + 1)))
        close(y[row, start:stop], theirs[0])
        total += theirs.sin().sum()
    total.backward()
    for key, x in a.items():
        close(gradients[key], x.grad)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_state_handed_over_goes_on(name):
    variant, a, half = attention.get(name), drawn(name, T), 40
    state, halves = jnp.zeros((B, *variant.state(N, 2, 8, **reads(name)))), []
    for start, stop in ((0, half), (half, T)):
        valid = jnp.ones((B, stop - start), bool)
        y, state = call(name, part(a, start, stop) | {"state": state, "valid": valid},
                        Mask(causal=True))  # fmt: skip
        halves.append(y)
    theirs, last = REFERENCES[name](tensors(name))
    close(jnp.concatenate(halves, axis=1), theirs)
    if last is not None:
        close(state, last)
