"""Tests of sweep statistics against values computed by hand."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from llm_jax.sweep import report, results


def test_paired_difference():
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt 3, t = 2 sqrt 3 with 2 degrees."""
    found = results.paired({0: 2.0, 1: 4.0, 2: 6.0, 9: 0.0}, {0: 1.0, 1: 2.0, 2: 3.0, 8: 5.0})
    t = 2 * math.sqrt(3)
    assert found.n == 3 and found.mean == pytest.approx(2)
    assert found.half_width == pytest.approx(4.302652730 / math.sqrt(3))  # t of 97.5 %, 2 degrees
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))  # Student's for 2 degrees


def test_a_pair_alone_has_no_test():
    assert results.paired({0: 1.0}, {1: 1.0}) is None
    alone = results.paired({0: 3.0}, {0: 1.0})
    assert alone.mean == 2 and math.isnan(alone.p) and math.isnan(alone.half_width)
    assert math.isnan(results.paired({0: 3.0, 1: 3.0}, {0: 1.0, 1: 1.0}).p)


LOSSES = {  # variant -> seed -> validation loss at each evaluation; without a last one: unfinished
    "base": {0: (3.0, 1.0, 2.0), 1: (5.0, 4.0, 4.5), 2: (2.0, 1.9, 1.5), 3: (9.0, 9.0)},
    "other": {3: (1.0, 1.0, 1.1), 2: (2.5, 0.5, 1.0), 1: (4.0, 2.0, 3.25), 0: (3.0, 3.5)},
    "third": {0: (2.0, 2.0, 2.4), 1: (4.6, 4.0, 4.2), 2: (1.0, 1.0, 1.6), 3: (9.0, 9.0)},
}
SPEEDS = {0: 9.0, 1: 2.0, 2: 1.0, 3: 3.0}  # tokens a second, of each seed


def test_variants_are_compared_seed_by_seed_at_the_last_step(tmp_path):
    """Neither the best nor the first loss; pairs are of a seed, not of the order of folders."""
    variant = {"config": {"train": {"steps": 30}}}
    design = {"seeds": 4, "baseline": "base", "variants": dict.fromkeys(LOSSES, variant)}
    for run in results.runs(design, tmp_path):
        losses = LOSSES[run.label][run.seed]
        rows = [
            {"step": 10 * i, "tokens": 8, "tokens_per_second": SPEEDS[run.seed], "eval_loss": loss}
            for i, loss in enumerate(losses, 1)
        ]
        (run.folder / "checkpoints" / str(10 * len(losses))).mkdir(parents=True)
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    base, other, third = results.summaries(design, tmp_path)
    assert base.losses == {0: 2.0, 1: 4.5, 2: 1.5} and base.difference is None
    assert other.losses == {1: 3.25, 2: 1.0, 3: 1.1}
    tests = {
        "other": stats.ttest_1samp(np.array([3.25 - 4.5, 1.0 - 1.5]), 0.0),
        "third": stats.ttest_1samp(np.array([2.4 - 2.0, 4.2 - 4.5, 1.6 - 1.5]), 0.0),
    }
    for found, n in ((other, 2), (third, 3)):
        test = tests[found.label]
        assert found.difference.n == n and found.difference.p == pytest.approx(test.pvalue)
    assert other.difference.mean == pytest.approx(-0.875)
    assert third.difference.mean == pytest.approx(0.2 / 3)
    assert [found.rate for found in (base, other, third)] == [2, 2, 2]  # medians of three seeds
    low, high = sorted(test.pvalue for test in tests.values())
    assert min(other.holm, third.holm) == pytest.approx(min(1.0, 2 * low))
    assert max(other.holm, third.holm) == pytest.approx(max(min(1.0, 2 * low), high))


def test_holm():
    found = results.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
    assert found == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert results.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_standard_error():
    assert results.standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(results.standard_error([1.0]))


def test_curve_adds_up_tokens_and_time():
    rows = [
        {"step": 1, "tokens": 90, "tokens_per_second": None},
        {"step": 10, "tokens": 100, "tokens_per_second": 50.0, "eval_loss": 3.0},
        {"step": 20, "tokens": 80, "tokens_per_second": 40.0, "eval_loss": 2.0},
    ]
    found = results.curve(rows)
    assert found.steps.tolist() == [10, 20] and found.loss.tolist() == [3, 2]
    assert found.tokens.tolist() == [990, 1790] and found.seconds.tolist() == [18, 38]
    assert results.rate(rows) == 45
    assert results.rate([*rows, {"tokens_per_second": 900.0}]) == 50  # no mean


def test_exponent_is_of_the_long_lengths():
    rows = [{"length": n, "seconds": n**1.5 if n >= 2048 else 1.0} for n in (512, 2048, 4096, 8192)]
    assert report.exponent(rows, "seconds") == pytest.approx(1.5)
    assert math.isnan(report.exponent(rows[:2], "seconds"))


def test_mean_context_is_over_seeds():
    one = lambda x: {"loss": x, "bins": [x, None]}
    bad = {"reason": "too long"}
    found = [{"length": 8, "bin": 4, "reaches": {"1": one(x), "2": bad}} for x in (1.0, 3.0)]
    mean = report.mean_context([("a", seed) for seed in found])
    assert mean["a", 1]["losses"] == [1, 3] and mean["a", 2]["reason"] == "too long"
    np.testing.assert_equal(mean["a", 1]["bins"], [2, np.nan])
