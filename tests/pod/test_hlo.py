import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax import config as configs
from llm_jax import sharding
from llm_jax.pod import hlo

LOOPS = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%inner (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %v = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %r = f32[4,8]{1,0} all-reduce(%v), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %r)
}

%inner_condition (p: (s32[], f32[4,8])) -> pred[] {
  %p = (s32[], f32[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(3)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%outer (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]) parameter(0)
  %a = (s32[], f32[4,8]) while(%p), condition=%inner_condition, body=%inner
  %v = f32[4,8]{1,0} get-tuple-element(%a), index=1
  %g = f32[32,8]{1,0} all-gather(%v), replica_groups=mesh['a'=2,'b'=4] {'a','b'}, dimensions={0}
  %c = f32[4,8]{1,0} slice(%g), slice={[0:4], [0:8]}
  %i = s32[] get-tuple-element(%a), index=0
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %c)
}

%outer_condition (p: (s32[], f32[4,8])) -> pred[] {
  %p = (s32[], f32[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(99)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,8]) tuple(%zero, %x)
  %w = (s32[], f32[4,8]) while(%start), condition=%outer_condition, body=%outer, TRIPS
  ROOT %y = f32[4,8]{1,0} get-tuple-element(%w), index=1
}
"""
BYTES = 4 * 8 * 4


@pytest.mark.parametrize(
    ["trips", "turns"], [('backend_config={"known_trip_count":{"n":"5"}}', 5), ("metadata={}", 99)]
)
def test_nested_loops_multiply(trips, turns):
    moved = hlo.Program(LOOPS.replace("TRIPS", trips)).moved([0] * 8)
    reduced, gathered = 2 * BYTES * 3 / 4, 7 * BYTES
    assert moved["ici_bytes"] == {"all-reduce": turns * 3 * reduced, "all-gather": turns * gathered}
    assert not moved["dcn_bytes"] and not moved["unknown_loops"]


def test_a_loop_that_data_decide_is_counted_once_and_said():
    text = LOOPS.replace("%n = s32[] constant(3)", "%n = s32[] get-tuple-element(%p), index=0")
    moved = hlo.Program(text.replace("TRIPS", "")).moved([0] * 8)
    assert moved["ici_bytes"]["all-reduce"] == 99 * 2 * BYTES * 3 / 4
    assert moved["unknown_loops"] == 1


def test_what_crosses_slices_goes_over_dcn():
    moved = hlo.Program(LOOPS.replace("TRIPS", "")).moved([0] * 4 + [1] * 4)
    assert moved["dcn_bytes"] == {"all-gather": 99 * BYTES}  # the all-reduces stay within a slice
    assert moved["ici_bytes"]["all-gather"] == 99 * 2 * 3 * BYTES
    across = hlo.Program(LOOPS.replace("TRIPS", "")).moved([0, 0, 1, 1] * 2)
    assert across["dcn_bytes"]["all-reduce"] == 99 * 3 * 2 * (BYTES / 2) / 2


@pytest.mark.parametrize("slice_of", [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 2, 3]])
def test_an_all_to_all_sends_a_share_to_each_other_device(slice_of):
    text = LOOPS.replace("TRIPS", "").replace("all-gather(%v)", "all-to-all(%v)")
    text = text.replace("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", "replica_groups={{0,1,2,3}}")
    text = text.replace("all-reduce(%v), replica_groups=[2,4]<=[8]", "tanh(%v)")
    moved = hlo.Program(text).moved(slice_of)
    near = sum(slice_of[i] == slice_of[0] for i in (1, 2, 3))
    assert moved["ici_bytes"]["all-to-all"] == 99 * near * BYTES / 4
    assert moved["dcn_bytes"].get("all-to-all", 0) == 99 * (3 - near) * BYTES / 4


def test_a_collective_that_xla_writes_as_a_transfer_between_slices():
    sent = (
        "%s = (f32[4,8], u32[], token[]) send(%x, %t), channel_id=1, is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    text = LOOPS.replace("  ROOT %y", f"  {sent}\n  ROOT %y")
    with_it, without = (hlo.Program(t).moved([0] * 4 + [1] * 4) for t in (text, LOOPS))
    assert with_it["dcn_bytes"]["all-reduce"] - without["dcn_bytes"].get("all-reduce", 0) == BYTES


@pytest.mark.parametrize(
    ["text", "wanted"],
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=2], device_ids=([2,2]T(1,0)) {'b'}",
         [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=2], device_ids=([2,2]T(1,0)) {'c'}, x",
         [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}", [[0, 3], [1, 2]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups={}, to_apply=%add", [[0, 1, 2, 3]]),
    ],
)  # fmt: skip
def test_replica_groups_in_all_spellings(text, wanted):
    np.testing.assert_array_equal(hlo.groups(text, 4), wanted)


def test_sizes_leave_out_what_is_not_in_hbm():
    assert hlo.size("(f32[4,8]{1,0:T(8,128)}, bf16[3]{0:T(128)S(1)}, pred[])") == 128 + 6 + 1
    assert hlo.size("(f32[4,8]{1,0:T(8,128)}, bf16[3]{0:T(128)S(1)})", hbm_only=True) == 128


FUSION = """HloModule jit_f

%update (p0: f32[100,8], p1: f32[1,8], p2: s32[]) -> f32[100,8] {
  %p0 = f32[100,8] parameter(0)
  %p1 = f32[1,8] parameter(1)
  %p2 = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %d = f32[100,8] dynamic-update-slice(%p0, %p1, %p2, %z)
}

ENTRY %main (a: f32[100,8], b: f32[1,8], i: s32[]) -> f32[100,8] {
  %a = f32[100,8] parameter(0)
  %b = f32[1,8] parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[100,8] fusion(%a, %b, %i), kind=kLoop, calls=%update
}
"""


def test_an_update_in_place_moves_what_it_updates():
    assert hlo.Program(FUSION).moved([0])["hbm_traffic_bytes"] == 32 + 4 + 32
    fused = "fusion(%a, %b, %i), kind=kLoop, calls=%update"
    alone = FUSION.replace(fused, "dynamic-update-slice(%a, %b, %i, %i)")
    assert hlo.Program(alone).moved([0])["hbm_traffic_bytes"] == 32 + 32


NESTED = """HloModule jit_f

%inner (p0: f32[100,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[100,8] parameter(0)
  %p1 = s32[] parameter(1)
  %b = f32[100,8] bitcast(%p0)
  ROOT %d = f32[1,8] dynamic-slice(%b, %p1, %p1), dynamic_slice_sizes={1,8}
}

%outer (p0: f32[100,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[100,8] parameter(0)
  %p1 = s32[] parameter(1)
  %f = f32[1,8] fusion(%p0, %p1), kind=kLoop, calls=%inner
  ROOT %n = f32[1,8] negate(%f)
}

ENTRY %main (a: f32[100,8], i: s32[]) -> f32[1,8] {
  %a = f32[100,8] parameter(0)
  %i = s32[] parameter(1)
  %t = (f32[100,8], f32[2,8]{1,0:T(8,128)}) custom-call(), custom_call_target="AllocateBuffer"
  ROOT %f = f32[1,8] fusion(%a, %i), kind=kOutput, calls=%outer
}
"""


def test_a_slice_inside_a_fusion_in_a_fusion_reads_the_slice():
    allocated = 3200 + 64
    assert hlo.Program(NESTED).moved([0])["hbm_traffic_bytes"] - allocated == 32 + 4 + 32


def test_an_element_of_a_tuple_is_read_alone():
    """`%t#1`, as jax 0.12's compiler writes it, where others have a get-tuple-element."""
    of_all, of_one = (
        hlo.Program(NESTED.replace("fusion(%a, %i), kind=kOutput, calls=%outer", f"negate({x})"))
        for x in ("%t", "%t#1")
    )
    read = lambda program: program.moved([0])["hbm_traffic_bytes"]
    assert read(of_all) - read(of_one) == 3200


def test_a_compiled_program_of_known_bytes():
    config = configs.base()
    config.mesh.data, config.mesh.fsdp = 1, 8
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:8])
    where = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())

    def f(weights, x):  # each turn gathers one [64, 64] matrix of which a device has an eighth
        gather = lambda w: jax.lax.with_sharding_constraint(w, whole)
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ gather(w)), None), x, weights)[0]

    weights = jax.ShapeDtypeStruct((6, 64, 64), jnp.float32, sharding=where)
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=whole)
    with sharding.activate(mesh):
        compiled = jax.jit(f, out_shardings=whole).lower(weights, x).compile()
    moved = hlo.Program(compiled.as_text()).moved([0] * 8)
    assert moved["ici_bytes"] == {"all-gather": 6 * 64 * 64 * 4 * 7 / 8}
