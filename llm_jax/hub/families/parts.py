"""Entries that several tables share."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_new": "geglu_tanh",
    "gelu_pytorch_tanh": "geglu_tanh",
    "relu": "reglu",
}


def block(
    stack: str, theirs: str, attention: str, mlp: str, norms: str, cross: str = ""
) -> dict[str, str]:
    """Entries of one repeated block: a module of ours -> theirs, '{}' in it for the layer.

    Args:
      stack: encoder or decoder.
      theirs: what all names of a layer begin with.
      attention, cross: names of query, key, value and output.
      mlp: names of a gate, if there is one, and of the projections up and down.
      norms: of each sublayer, in their order.
    """
    ours = [f"{part}/{name}" for part in ("attention", *["cross_attention"] * bool(cross))
            for name in ("query", "key", "value", "out")]  # fmt: skip
    ours += ["mlp/gate", "mlp/up", "mlp/down"][-len(mlp.split()) :]
    ours += ["attention_norm", *["cross_norm"] * bool(cross), "mlp_norm"]
    names = " ".join((attention, cross, mlp, norms)).split()
    pairs = zip(ours, names, strict=True)
    return {f"{stack}/stack/layers/block/{k}": f"{theirs}.{v}" for k, v in pairs}


def classifies(hf: dict) -> str:
    """The head that "classifier" is where sequences and tokens have one of the same shape."""
    return "token" if "ForTokenClassification" in str(hf.get("architectures")) else "sequence"


ONE_CLASSIFIER = {
    "sequence": {"sequence": "classifier"}, "token": {"token": "classifier"},
    "span": {"span": "qa_outputs"},
}  # fmt: skip
