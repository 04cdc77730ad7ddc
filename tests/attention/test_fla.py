"""Tests of attention variants against independent references, in PyTorch on a CPU.

Each function is named after a variant. It takes the arguments of attend as tensors, for one
segment, and returns (output, last state or None), computed by fla.ops or transformers.
"""

import functools
import importlib.util
import math
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from llm_jax import attention  # noqa: E402
from llm_jax.attention import Mask  # noqa: E402
from tests.attention.test_variants import READS, RECURRENT, B, N, call, drawn, reads  # noqa: E402
from tests.slow import but  # noqa: E402

FLA = importlib.util.find_spec("fla")
pytestmark = pytest.mark.skipif(FLA is None, reason="needs fla-core, see requirements-dev.txt")
T = 77
# The second begins with one of the blocks of 16 that NSA has, as fla has each document do.
SEGMENTS = np.array([[1] * 32 + [2] * 35 + [0] * 10, [1] * T], np.int32)
PIECES = [(0, 0, 32), (0, 32, 67), (1, 0, T)]  # row, start and stop of its segments
PLACED = ("log_linear",)  # where a segment starts counts
REFERENCES = {}


@functools.cache
def fla(name):
    """A module of fla.ops by its file, as importing the package asks for Triton and a GPU."""
    path = Path(FLA.submodule_search_locations[0], "ops", *name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"fla_{name}", path)
    module = importlib.util.module_from_spec(spec)
    helpers = "fla", "fla.ops", "fla.ops.utils", "fla.ops.utils.pooling"
    with mock.patch.dict(sys.modules, dict.fromkeys(helpers, mock.MagicMock())):
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
def gla(a):
    arrays = a["query"], heads(a["key"]), heads(a["value"]), F.logsigmoid(a["decay"]) / 16
    y, state = fla("gla.naive").naive_recurrent_gla(*arrays, output_final_state=True)
    return normed(y, a["norm"]), state


@reference
def hgrn2(a):
    forget = READS["forget_floor"] + (1 - READS["forget_floor"]) * heads(a["key"]).sigmoid()
    arrays = F.silu(a["query"]), 1 - forget, heads(a["value"]), forget.log()
    y, state = fla("gla.naive").naive_recurrent_gla(*arrays, output_final_state=True)
    return normed(y, a["norm"]), state


@reference
def retnet(a):
    arrays = (heads(a[x]).transpose(1, 2) for x in ("query", "key", "value"))
    return normed(fla("retention.naive").naive_retention(*arrays).transpose(1, 2), None), None


@reference
def gsa(a):
    q, k, v = (F.silu(heads(a[x])) for x in ("query", "key", "value"))
    log_decay = F.logsigmoid(a["forget"]) / 8
    run = fla("gsa.naive").naive_recurrent_gsa
    y, (keys, values) = run(q, k, v, 1 - log_decay.exp(), log_decay, output_final_state=True)
    return normed(F.silu(y), a["norm"]), torch.cat([keys.transpose(2, 3), values], dim=-1)


@reference
def rwkv6(a):
    arrays = a["query"], heads(a["key"]), heads(a["value"]), -a["decay"].exp()
    run = fla("rwkv6.recurrent_naive").naive_recurrent_rwkv6
    y, state = run(*(x.transpose(1, 2) for x in arrays), a["bonus"], output_final_state=True)
    y = F.layer_norm(y.transpose(1, 2), y.shape[-1:], eps=1e-5)
    return y * a["norm_scale"] + a["norm_bias"], state


@reference
def based(a):
    arrays = (heads(a[x]).transpose(1, 2) for x in ("query", "key", "value"))
    return fla("based.naive").naive_parallel_based(*arrays).transpose(1, 2), None


@reference
def rebased(a):
    q, k = (F.layer_norm(heads(a[x]), (8,), a["gamma"], a["beta"]) for x in ("query", "key"))
    arrays = (x.transpose(1, 2) for x in (q, k, heads(a["value"])))
    return fla("rebased.naive").naive_parallel_rebased(*arrays).transpose(1, 2), None


@reference
def log_linear(a):
    run = fla("log_linear_attn.naive").naive_log_linear_attn
    arrays = a["query"], heads(a["key"]), heads(a["value"]), F.logsigmoid(a["decay"]) / 16
    y = run(*arrays, F.softplus(a["level_scale"] * a["levels"]), scale=None)
    return normed(y, a["norm"]), None


@reference
def mamba2(a):
    from transformers.models.mamba2 import modeling_mamba2

    y, state = modeling_mamba2.mamba2_chunk_scan(
        a["value"], a["step"], -a["log_speed"].exp(), a["key"], a["query"], chunk_size=16,
        D=a["skip"], dt_softplus=True, return_final_states=True,
    )  # fmt: skip
    norm = modeling_mamba2.MambaRMSNormGated(y[0, 0].numel(), y[0, 0].numel() // 2, eps=1e-5)
    flat = norm(y.flatten(2), a["z"].flatten(2)) * a["norm"].flatten()
    return flat.view(y.shape), state.transpose(2, 3)


def unit(x):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def delta_inputs(a):
    """Queries, keys, values and rates of the delta rule, a token's keys one after the other."""
    n = a["beta"].shape[-1]
    in_turn = lambda x: x.unflatten(2, (-1, n)).transpose(2, 3).flatten(1, 2)
    key, value, beta = (in_turn(x) for x in (a["key"], a["value"], a["beta"].flatten(2)))
    return unit(heads(a["query"])), unit(heads(key)), heads(value), 2 * beta.sigmoid()


def delta_decay(a):
    speed = a["log_speed"].exp()
    return -(speed if a["decay"].ndim == 3 else speed[:, None]) * F.softplus(a["decay"])


@reference
def deltanet(a):
    arrays = (x.transpose(1, 2) for x in delta_inputs(a))
    y, state = fla("delta_rule.naive").delta_rule_recurrence(*arrays)
    return normed(y.transpose(1, 2), a["norm"]), state


@reference
def gated_deltanet(a):
    run = fla("gated_delta_rule.naive").naive_recurrent_gated_delta_rule
    y, state = run(*delta_inputs(a), delta_decay(a), output_final_state=True)
    return normed(y, a["norm"]), state


@reference
def gated_deltaproduct(a):
    q, k, v, beta = delta_inputs(a)
    run = fla("gated_delta_product.naive").naive_recurrent_gated_delta_product
    y, state = run(q, k, v, delta_decay(a), beta, q.shape[-1] ** -0.5, num_householder=2)
    return normed(y, a["norm"]), state


@reference
def kda(a):
    q, k, v, beta = delta_inputs(a)
    run = fla("kda.naive").naive_recurrent_kda
    y, state = run(q, k, v, delta_decay(a), beta, output_final_state=True)
    return normed(y, a["norm"]), state


@reference
def rwkv7(a):
    key, value, rate = heads(a["key"]), heads(a["value"]), a["rate"].sigmoid()
    removed, added = unit(a["removal"] * key), key * (1 + a["replacement"] * (rate - 1))
    arrays = a["query"], added, value, -removed, rate * removed
    decay = -(a["decay"].sigmoid() * math.exp(-0.5))
    run = fla("generalized_delta_rule.dplr.naive").dplr_recurrence
    y, state = run(*(x.transpose(1, 2) for x in (*arrays, decay)))
    y = F.layer_norm(y.transpose(1, 2), y.shape[-1:], eps=1e-5) * a["norm_scale"] + a["norm_bias"]
    return y + (a["query"] * a["bonus"] * added).sum(-1, keepdim=True) * value, state


@reference
def mesa_net(a):
    q, k, v = unit(heads(a["query"])), unit(heads(a["key"])), heads(a["value"])
    rest = F.logsigmoid(a["decay"]), F.softplus(a["ridge"]) + 0.25, a["beta"].sigmoid()
    run = fla("mesa_net.naive").naive_mesa_net_exact  # of values as wide as keys
    one, R, G = run(q, k, v[..., :8], *rest)
    two, _, G2 = run(q, k, v[..., -8:], *rest)
    join = lambda a, b: torch.cat([a, b[..., 16 - v.shape[-1] :]], dim=-1)
    return normed(join(one, two), a["norm"]), torch.cat([R, join(G, G2)], dim=-1)


@reference
def forgetting(a):
    run = fla("forgetting_attn.naive").naive_forgetting_attn
    return run(a["query"], a["key"], a["value"], F.logsigmoid(a["forget"])), None


@reference
def path(a):
    w, zeros = a["direction"], torch.zeros(a["query"].shape[:3])
    w = w * torch.rsqrt(w.square().sum(-1, keepdim=True) + 1e-6)
    arrays = a["query"], a["key"], a["value"], w, 2 * a["rate"].sigmoid(), zeros
    return fla("path_attn.naive").naive_path_attn(*arrays, scale=8**-0.5), None


@reference
def stick_breaking(a):
    run = fla("stickbreaking_attn.naive").naive_stickbreaking_attn
    return run(a["query"], a["key"], a["value"])[0], None


@reference
def nsa(a):
    """The three branches by their parts, as the whole has kernels for means and for the window."""
    theirs, options, scale = fla("nsa.naive"), reads("nsa"), 8**-0.5
    q, k, v = a["query"], a["key"], a["value"]
    size, length = options["block"], q.shape[1]
    mean = lambda x: torch.stack([part.mean(1) for part in x.split(size, dim=1)], dim=1)
    compressed, _ = theirs.naive_nsa_compression(q, mean(k), mean(v), size, scale)
    chosen = theirs.naive_nsa_topk(q, mean(k), options["selected_blocks"], size, scale)
    selected = theirs.naive_nsa_selection(q, k, v, chosen, size, scale)
    away = torch.arange(length)[:, None] - torch.arange(length)
    band = (away >= 0) & (away < options["window"])
    turned = (x.transpose(1, 2) for x in (q, heads(k), heads(v)))
    sliding = F.scaled_dot_product_attention(*turned, attn_mask=band).transpose(1, 2)
    gates = a["gates"].sigmoid()[..., None, :].unbind(-1)
    branches = compressed, selected, sliding
    return sum(g * x for g, x in zip(gates, branches, strict=True)), None


@reference
def dsa(a):
    index = a["index_key"][:, :, 0]
    index = index * torch.rsqrt(index.square().mean(-1, keepdim=True) + 1e-6)
    arrays = a["query"], a["key"], a["value"], a["index_query"], index, a["index_weight"]
    return fla("dsa.naive").naive_dsa(*arrays, topk=reads("dsa")["index_topk"]), None


@reference
def mamba3(a):
    """A token at a time, by the paper's proposition 1: the source has kernels for GPUs alone."""
    size, share = F.softplus(a["step"]), a["trapezoid"].sigmoid()
    decay = torch.exp(-F.softplus(a["speed"]).clamp(min=1e-4) * size)
    angle = (np.pi * size[..., None] * a["angles"].tanh()[:, :, None]).cumsum(1)
    R, turn = angle.shape[-1], torch.polar(torch.ones_like(angle), angle)

    def prepared(name):
        x = heads(F.rms_norm(a[name], (8,), a[f"scale_{name}"], eps=1e-5)) + a[f"bias_{name}"]
        turned = torch.complex(x[..., :R], x[..., R : 2 * R]) * turn
        return torch.cat([turned.real, turned.imag, x[..., 2 * R :]], dim=-1)

    q, k, v = prepared("query"), prepared("key"), heads(a["value"])
    state, before, outputs = 0, 0, []
    for t in range(v.shape[1]):
        added = k[:, t, :, :, None] * v[:, t, :, None]
        of = lambda x, t=t: x[:, t, :, None, None]
        state = of(decay) * (state + of((1 - share) * size) * before) + of(share * size) * added
        before = added
        outputs.append(torch.einsum("bnm,bnmv->bnv", q[:, t], state))
    return (torch.stack(outputs, 1) + a["skip"][:, None] * v) * F.silu(a["z"]), None


@reference
def ttt_linear(a):
    """By autograd, at the weights before the mini-batch."""
    q, k, v = (heads(a[x]) for x in ("query", "key", "value"))

    def f(x, W):
        z = (torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)[..., None, :] @ W)[..., 0, :]
        return x + F.layer_norm(z, z.shape[-1:], eps=1e-5) * a["norm_scale"] + a["norm_bias"]

    W, y = a["start"].transpose(0, 1).expand(len(q), -1, -1, -1), []
    for t in range(q.shape[1]):
        before = W if t % READS["ttt_batch"] == 0 else before  # noqa: F821
        loss = (f(k[:, t], before) - v[:, t]).square().sum() / 2
        (gradient,) = torch.autograd.grad(loss, before, create_graph=True)
        W = W - a["rate"][:, t, :, None, None].sigmoid() / q.shape[-1] * gradient
        y.append(f(q[:, t], W))
    return torch.stack(y, dim=1), None


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


def test_every_recurrent_kind_has_one():
    assert set(RECURRENT) <= set(REFERENCES)


# Of others test_variants.py holds values and gradients to their definitions, too.
@pytest.mark.parametrize(
    "name", but([name for name in REFERENCES if attention.get(name).state][::3], REFERENCES)
)
def test_packed_segments_equal_separate_calls(name):
    """Values, and gradients of all arguments."""
    pieces = [piece for piece in PIECES if name not in PLACED or piece[1] == 0]
    mask, real = Mask(SEGMENTS, SEGMENTS, causal=True), np.zeros((B, T, 1, 1))
    for row, start, stop in pieces:
        real[row, start:stop] = 1

    @jax.jit
    def run(a):
        y = call(name, a, mask) * real
        return jnp.sin(y).sum(), y

    (_, y), gradients = jax.value_and_grad(run, has_aux=True)(drawn(name, T))
    a, total = tensors(name), 0
    for row, start, stop in pieces:
        theirs, _ = REFERENCES[name](part(a, start, stop, slice(row, row + 1)))
        close(y[row, start:stop], theirs[0])
        total += theirs.sin().sum()
    total.backward()
    for key, x in a.items():
        close(gradients[key], torch.zeros_like(x) if x.grad is None else x.grad)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REFERENCES if attention.get(name).state])
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
