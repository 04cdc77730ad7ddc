"""Tests of audit statistics, reports and command, and of the limits cost and generalisation."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from llm_jax import audit, commands
from llm_jax.audit import generalisation, report, statistics
from llm_jax.config import ConfigError
from llm_jax.files import read_json


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(60):
        found = statistics.mean("mean", rng.normal(1.0, 1.0, 40))
        hits += found["low"] < 1 < found["high"]
    assert 50 <= hits <= 60  # of 95 %


def test_rows_of_one_group_are_drawn_together():
    values, groups = np.repeat([0.0, 1.0], 100), np.repeat([0, 1], 100)
    alone = statistics.bootstrapped("x", np.mean, values)
    together = statistics.bootstrapped("x", np.mean, values, groups=groups)
    assert alone["high"] - alone["low"] < 0.2
    assert (together["low"], together["high"], together["n"]) == (0, 1, 2)


def test_ece_of_probabilities_that_are_true_is_that_of_chance_and_of_others_their_distance():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = (rng.random((len(p), 1)) > p.cumsum(1)).sum(1)
    assert generalisation.ece(*generalisation.confident(logits, label)) < 0.015
    assert generalisation.temperature(logits, label) == pytest.approx(1, abs=0.03)
    assert generalisation.temperature(3 * logits, label) == pytest.approx(3, abs=0.1)
    always = np.full(1000, 0.9), np.arange(1000) < 600
    assert generalisation.ece(*always) == pytest.approx(0.3)


@pytest.mark.slow
def test_the_losses_are_those_of_eval(gpt, capsys):
    subject = audit.Subject(gpt, options=audit.Options(examples=10_000))
    sums, weights = subject.row_losses(subject.documents("validation"))
    commands.main(["eval", f"--workdir={gpt}", "--max_batches=0", "--json"])
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert statistics.ratio(sums, weights) == pytest.approx(said["loss"], rel=1e-5)
    assert weights.sum() == said["tokens"]


def test_the_command_writes_reports_that_need_nothing_else(gpt, tmp_path):
    once = ["audit", f"--workdir={gpt}", "--only=cost,generalisation", "--examples=16"]
    assert commands.main([*once, "--watts=100", "--grid=0.5", "--json"]) == 0
    other = shutil.copytree(gpt, tmp_path / "other")
    assert commands.main([*once[:2], "--only=cost", "--watts=100", "--grid=0.5",
                          f"--against={other}"]) == 0  # fmt: skip
    cost = read_json(gpt / "audit" / "cost.json")
    figures = {figure["name"]: figure["value"] for figure in cost["figures"]}
    (hours,) = (x for name, x in figures.items() if name.startswith("training steps"))
    assert figures["energy"] == pytest.approx(hours / 10)
    assert figures["emission"] == pytest.approx(hours / 20)
    assert cost["command"] in (gpt / "audit" / "report.md").read_text() and cost["commit"]
    text = (gpt / "audit" / "report.md").read_text()
    assert "# Audit: gpt against other" in text and "|  | gpt | other | unit" in text
    html = (gpt / "audit" / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html) and "://" not in html
    assert html.count("data:image/png;base64,") == len(re.findall(r"!\[", text)) >= 1


@pytest.mark.parametrize(
    "options, said",
    [(["--only=costs"], "'costs' is not one of cost"), (["--examples=1"], "at least 2"),
     (["--watts=-1"], "--watts=-1.0"), (["--against=/nowhere"], "/nowhere: has not been audited")],
)  # fmt: skip
def test_wrong_options_are_refused(gpt, options, said, capsys):
    assert commands.main(["audit", f"--workdir={gpt}", "--only=", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_limit_that_cannot_be_measured_does_not_stop_the_others(gpt, monkeypatch, capsys):
    def fails(subject):
        raise ConfigError("audit: no text is long enough")

    def measure(subject):
        return {"figures": [statistics.figure("words", 3)]}

    for name, function in (("first", fails), ("second", measure)):
        limit = audit.Limit(name, f"About {name}.", lambda subject: "", function)
        monkeypatch.setitem(audit.LIMITS, name, limit)
    (gpt / "audit").mkdir(exist_ok=True)
    (gpt / "audit" / "first.json").write_text("{}")  # of an earlier call
    only = ["audit", f"--workdir={gpt}", "--only=first,robustness,second", "--json"]
    assert commands.main(only) == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["failed"] == ["first"] and not (gpt / "audit" / "first.json").exists()
    text = Path(said["report"]).read_text()
    assert "About second." in text and "About first." not in text
    assert "Not measured: first: audit: no text is long enough" in text
    assert "Not measured: robustness: needs a classifier" in text
    (gpt / "audit" / "second.json").unlink()


def test_a_figure_is_shown_with_its_interval():
    assert report.shown(statistics.figure("a", 1234567.0)) == "1,234,567"
    assert report.shown(statistics.figure("a", 0.5, "", 0.25, 0.75)) == "0.5 [0.25, 0.75]"
    assert report.shown(statistics.figure("a", 1e9)) == "1e+09"
    assert report.shown(statistics.figure("a", float("nan"))) == "–"


def test_what_stands_in_a_figure_is_text_and_a_page_is_inside(tmp_path):
    (tmp_path / "page.html").write_text('<p title="1">é</p>')
    draw = lambda results, folder: [audit.limit.Picture("page.html", "a <b>page")]
    limit = audit.Limit("privacy", "what is <b>told", None, None, draw)
    result = dict.fromkeys(("step", "commit", "time", "hardware"), "<b>") | {
        "figures": [statistics.figure("of 'a|<b>b'", 1.5, "bits")], "command": "--canary='<b>'"
    }  # fmt: skip
    path = report.write(tmp_path, ["run"], {limit: {"run": result}})
    assert "[a <b>page](page.html)" in path.read_text()
    html = path.with_suffix(".html").read_text()
    assert "<b>" not in html and html.count("&lt;b&gt;") == 8
    assert "<td>of 'a|&lt;b&gt;b'</td>" in html and "href" not in html
    assert 'srcdoc="&lt;p title=&quot;1&quot;&gt;é&lt;/p&gt;"' in html


DOC = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
ROWS = re.findall(r"^\| (\w+) \|.*\| `(--only.*)` \|$", DOC, re.MULTILINE)


def test_the_page_lists_every_limit_and_adds_one_that_works(gpt, monkeypatch):
    assert [name for name, _ in ROWS] == list(audit.LIMITS)
    assert all(shlex.split(command)[0] == f"--only={name}" for name, command in ROWS)
    (code,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    added = {}
    exec(compile(code, "docs/audit.md", "exec"), added)
    monkeypatch.setitem(audit.LIMITS, "openings", added["LIMIT"])
    subject = audit.Subject(gpt, options=audit.Options(examples=8))
    path, failed = audit.audit(subject, ["openings"])
    assert "first words" in path.read_text() and not failed
    (gpt / "audit" / "openings.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("run", ["gpt", "classifier"])
def test_every_command_of_the_page(run, request, tmp_path, monkeypatch):
    folder = request.getfixturevalue(run)
    monkeypatch.chdir(tmp_path)
    text = "abc def\n" if run == "gpt" else "text\tlabel\nfine film\t1\ndull film\t0\n"
    name = "other.txt" if run == "gpt" else "other.tsv"
    Path(name).write_text(text)
    for limit, command in ROWS:
        options = [x.replace("other.txt", name) for x in shlex.split(command)]
        assert commands.main(["audit", f"--workdir={folder}", "--examples=8", *options]) == 0
        subject = audit.Subject(folder)
        lacks = audit.LIMITS[limit].lacks(subject)
        assert (folder / "audit" / f"{limit}.json").exists() == (not lacks)
    report = (folder / "audit" / "report.html").read_text()
    assert "://" not in report and "data:image/png" in report
