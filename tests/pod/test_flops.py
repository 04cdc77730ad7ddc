import jax
import jax.numpy as jnp
import pytest

from llm_jax.pod import flops, hlo

PRODUCTS = {
    "batched": (lambda x, y: jnp.einsum("btnh,bsnh->bnts", x, y), (2, 5, 3, 4), (2, 7, 3, 4)),
    "strided": (
        lambda x, y: jax.lax.conv_general_dilated(x, y, (2, 1), ((1, 2), (3, 0)), (1, 2), (2, 1)),
        (2, 6, 7, 8), (9, 6, 3, 2),
    ),
    "grouped": (
        lambda x, y: jax.lax.conv_general_dilated(x, y, (1,), "SAME", feature_group_count=3),
        (2, 6, 9), (12, 2, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_as_xla_counts_them(name):
    f, *shapes = PRODUCTS[name]
    compiled = jax.jit(f).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    ours = flops.computed(hlo.Program(compiled.as_text()))
    assert ours == compiled.cost_analysis()["flops"]


# Of steps compiled for a TPU: a product written as a convolution over padding, attention's kernel,
# whose line is broken by its metadata, and products of experts.
TPU = """HloModule jit_step

ENTRY %main (x: bf16[2,8192,4096,1]) -> bf16[2,8192,32,128] {
  %x = bf16[2,8192,4096,1]{2,1,0,3} parameter(0)
  %w = bf16[4096,32,128,1]{2,1,0,3} parameter(1)
  %m = s8[1,16,16]{2,1,0} parameter(2)
  %q = bf16[2,32,8192,128]{3,2,1,0} parameter(3)
  %k = bf16[2,8,8192,128]{3,2,1,0} parameter(4)
  %splash_mha_dq_segmented.1 = (f32[2,512,128]{2,1,0}, bf16[2,32,8192,128]{3,2,1,0}) custom-call(%m, %q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q_dq\\": 512}"
}}, metadata={op_name="jit(step)/vmap(share_136_of_256)/splash_mha_dq"}
  %rows = bf16[8192,256]{1,0} parameter(5)
  %each = bf16[2,256,512]{2,1,0} parameter(6)
  %ragged-dot-none.1 = bf16[8192,512]{1,0} custom-call(%m, %rows, %each), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/share_2_of_8/ragged_dot_general/ragged-dot-none"}
  %ragged-dot-none.2 = bf16[2,256,512]{2,1,0} custom-call(%m, %rows, %ragged-dot-none.1), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/transpose(jvp(share_2_of_8))/ragged_dot_general/ragged-dot-none"}
  ROOT %convolution.1 = bf16[2,8192,32,128]{3,1,2,0} convolution(%x, %w), window={size=1x32 pad=0_0x31_31 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f
}
"""  # noqa: E501


def test_products_and_kernels_as_a_tpu_has_them():
    project = 2 * 2 * 8192 * 4096 * 32 * 128
    attend = 2 * 3 * (2 * 32 * 8192 * 8192 * 128) * 136 / 256  # dq: scores, their gradient, its own
    experts = 2 * (2 * 8192 * 256 * 512) * 2 / 8  # forward, and the gradient of the kernels
    assert flops.computed(hlo.Program(TPU)) == project + attend + experts


CUDNN = """HloModule jit_step

ENTRY %main (q: bf16[4,512,8,64], k: bf16[4,512,2,64]) -> bf16[4,8,512,64] {
  %q = bf16[4,512,8,64]{3,2,1,0} parameter(0)
  %k = bf16[4,512,2,64]{3,2,1,0} parameter(1)
  ROOT %attend = (bf16[4,8,512,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": {"mask_type": "CAUSAL", "sliding_window_length": 0}}
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("changes", "products", "pairs"),
    [
        ((), 2, 512 * 513 / 2),
        (("Softmax", "ScaleBiasSoftmaxBackward"), 5, 512 * 513 / 2),
        (("CAUSAL", "NO_MASK"), 2, 512 * 512),
        (('window_length": 0', 'window_length": 3'), 2, 512 * 3 - 3),
        (("CAUSAL", "PADDING"), 0, 0),  # what is not known counts nothing
    ],
)
def test_attention_as_cudnn_has_it(changes, products, pairs):
    text = CUDNN.replace(*changes) if changes else CUDNN
    assert flops.computed(hlo.Program(text)) == products * 2 * 4 * 8 * pairs * 64
