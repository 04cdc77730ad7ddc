"""Tests of how claims of papers are decided, and which records are accepted."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.claims import claim, records
from llm_jax import record


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_interval_is_the_paired_t_tests(n):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    mean, half = claim.interval(list(a - b))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-9)


@pytest.mark.parametrize("within", [claim.BETTER, claim.equal(0.1), claim.no_worse(0.1)])
@pytest.mark.parametrize("mean", np.linspace(-0.3, 0.3, 13))
@pytest.mark.parametrize("half", [0.01, 0.08, 0.25])
def test_a_verdict_is_where_the_points_of_the_interval_lie(mean, half, within):
    spread = half * math.sqrt(2) / stats.t.ppf(0.975, 1)  # of two effects
    effects = [mean - spread / math.sqrt(2), mean + spread / math.sqrt(2)]
    points = np.linspace(*np.array(claim.interval(effects)) @ [[1, 1], [-1, 1]], 2001)
    inside = (points > within[0]) & (points < within[1])
    expected = claim.AGREES if inside.all() else claim.UNSEEN
    expected = expected if inside.any() else claim.DISAGREES
    assert claim.verdict(effects, within) == expected


@pytest.mark.parametrize("effects", [[], [0.5]])
def test_fewer_than_two_seeds_decide_nothing(effects):
    assert claim.verdict(effects, claim.BETTER) == claim.UNSEEN
    assert claim.seeds_needed(effects, claim.BETTER) is None


def test_so_many_seeds_decide_as_often_as_promised():
    pilot = [0.1, 0.3]
    n = claim.seeds_needed(pilot, claim.BETTER)
    rng = np.random.default_rng(0)
    decided = lambda n: np.mean([
        claim.verdict(list(rng.normal(0.2, np.std(pilot, ddof=1), n)), claim.BETTER) == claim.AGREES
        for _ in range(600)
    ])  # fmt: skip
    assert decided(n - 1) < claim.POWER + 0.05 and decided(n) > claim.POWER - 0.05


def test_only_seeds_that_both_sides_have_are_compared():
    both = claim.Claim("", "", "", variant="a", against="b")
    found = both.effects({"a": {0: 1.0, 1: 2.0, 3: 9.0}, "b": {1: 5.0, 0: 3.0, 2: 7.0}})
    assert found == {0: 2.0, 1: 3.0}


git = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


def _record(folder, commit, label="a", seed=0, loss=1.0, variant="a"):
    file = records.file("study", label, seed, folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    run = {"run": label, "variant": variant, "seed": seed, "diverged": False}
    file.write_text(json.dumps({"commit": commit, "last": {"eval_loss": loss}} | run))


@git
@pytest.mark.parametrize("of", ["{}+changes", "", "0" * 40, "unknown", "--help"])
def test_a_record_of_no_known_commit_is_refused(tmp_path, of):
    _record(tmp_path, of.format(record.commit().removesuffix("+changes")))
    with pytest.raises(ValueError, match="seed0.json: was made by commit"):
        records.load("study", tmp_path)


@git
def test_the_seed_that_chooses_a_rate_decides_nothing(tmp_path):
    here = record.commit().removesuffix("+changes")
    for label, losses in {"fast": [1.0, 3.0, 4.0], "slow": [2.0]}.items():
        for seed, loss in enumerate(losses):
            _record(tmp_path, here, label, seed, loss)
    runs = records.chosen(records.load("study", tmp_path))
    assert [records.loss(run) for run in runs["a"]] == [3.0, 4.0]


def test_the_documentations_example_is_a_study():
    text = Path("docs/reproducing.md").read_text()
    example = text.partition("```python\n")[2].partition("\n```")[0]
    assert example == Path("experiments/claims/papers/bert.py").read_text().strip()


@git
@pytest.mark.slow
def test_a_study_is_trained_once_and_read_from_its_records(tmp_path, monkeypatch):
    from experiments.claims import run

    made = record.commit().removesuffix("+changes")
    monkeypatch.setattr(record, "commit", lambda: made)
    (text := tmp_path / "text.txt").write_text("\n".join(map(str, range(3000))))
    keys = {"data.train": text, "train.steps": 2, "eval.every": 2, "eval.max_batches": 1,
            "checkpoint.every": 2, "data.batch_size": 8}  # fmt: skip
    changes = tuple(f"{key}={value}" for key, value in keys.items())
    for seeds in (1, 2):  # the second adds to the first
        plan = run.designed("bert", seeds, changes)
        run.study("bert", plan, tmp_path / "results", tmp_path / "work")
    monkeypatch.setattr(run, "train", None)
    run.study("bert", plan, tmp_path / "results", tmp_path / "work")
    runs = records.chosen(records.load("bert", tmp_path / "results"))
    assert {name: len(own) for name, own in runs.items()} == dict.fromkeys(plan["variants"], 2)
    assert all(run["curve"][-1]["eval_loss"] for run in runs["2 layers, 64 wide"])
    assert not list((tmp_path / "work").rglob("checkpoints"))


@pytest.mark.slow
@pytest.mark.data
def test_every_study_can_be_trained(shared_data):
    """All configs of all studies are valid, in a process that reads the data's folder anew."""
    code = ("from experiments.claims import records, run; "
            "print([[*run.designed(name)['impossible']] for name in records.STUDIES])")  # fmt: skip
    environment = os.environ | {"LLM_JAX_DATA": str(shared_data), "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, check=True,
                          stdout=subprocess.PIPE)  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [[] for _ in records.STUDIES]


@pytest.mark.parametrize("name", records.STUDIES)
def test_claims_name_variants_of_their_study(name):
    study = records.study(name)
    variants = study.sweep.variants()
    assert study.claims
    for each in study.claims:
        assert {each.variant, each.against} - {""} <= variants.keys() or each.effect
        assert each.published and each.full and each.scope, each.says
