"""Formats a plan for display."""

from typing import Any


def lines(plan: dict[str, Any]) -> list[str]:
    """Returns the figures of a plan as lines of text; predictions are marked."""
    mesh = ", ".join(f"{axis} {n}" for axis, n in plan["mesh"].items()) or "one device"
    head = f"{plan['topology']}: {plan['devices']} x {plan['chip']} ({mesh})"
    if plan["slices"] > 1:
        head += f" in {plan['slices']} slices"
    out = [head, *_memory(plan)]
    if plan.get("fits"):
        out += _work(plan) + _prediction(plan)
    elif "fits" in plan:
        out += ["does not fit", *(f"  try {text}" for text in plan["advice"])]
    return out + [f"compiled in {plan['compile_seconds']:.0f} s"]


def _memory(plan):
    held = ("parameter_bytes", "optimizer_bytes", "other_argument_bytes", "temp_bytes",
            "output_bytes", "code_bytes", "left_bytes")  # fmt: skip
    names = ("parameters", "optimizer state", "other arguments", "temporaries",
             "further results", "program", "left")  # fmt: skip
    total = f" of {gigabytes(plan['hbm_bytes'])}" if plan["hbm_bytes"] else ""
    out = [f"a chip's memory{total}"]
    for key, name in zip(held, names, strict=True):
        if plan.get(key) is not None:
            out.append(f"  {name:<16} {gigabytes(plan[key]):>12}")
    if plan.get("host_bytes"):
        out.append(f"  {'on the host':<16} {gigabytes(plan['host_bytes']):>12}")
    for buffer in plan.get("largest", []):
        out.append(f"    {gigabytes(buffer['bytes']):>10}  {buffer['shape']}  {buffer['made_by']}")
    return out


def _work(plan):
    out = [f"FLOPs per chip and step: {plan['flops'] / plan['devices']:.4g} of the model, "
           f"{plan['computed_flops']:.4g} in the program's matrix products",
           f"bytes per chip and step: {gigabytes(plan['hbm_traffic_bytes'])} in HBM"]  # fmt: skip
    if plan["unknown_loops"]:
        out[-1] += f" (lower bound: {plan['unknown_loops']} loops of unknown length counted once)"
    near, far = ("NVLink", "network") if "NVIDIA" in plan["chip"] else ("ICI", "DCN")
    for net, sent in ((near, plan["ici_bytes"]), (far, plan["dcn_bytes"])):
        out += [f"  {net} {kind:<20} {gigabytes(n):>12}" for kind, n in sent.items() if n]
    return out


def _prediction(plan):
    if "roofline_seconds" not in plan:
        return ["no prediction: the rates of this device are unknown"]
    each = ", ".join(f"{name} {1000 * s:,.1f} ms" for name, s in plan["roofline_seconds"].items())
    return [
        f"predicted, at data-sheet rates: {each}; bound by {plan['bound_by']}",
        f"  a step takes at least {1000 * plan['predicted_step_seconds']:,.1f} ms: at most "
        f"{plan['predicted_tokens_per_second']:,.0f} tokens/s, MFU {plan['predicted_mfu']:.1%}",
    ]


def gigabytes(count: float) -> str:
    """Formats bytes in GB (10^9), or in MB below 0.1 GB."""
    return f"{count / 1e9:,.2f} GB" if abs(count) >= 1e8 else f"{count / 1e6:,.2f} MB"
