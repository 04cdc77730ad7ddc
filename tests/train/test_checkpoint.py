"""Tests of checkpoints: damage is detected, the newest and the best are kept."""

import functools
import hashlib
import json
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import ConfigError, base
from llm_jax.train.checkpoint import Checkpoints


def state(step, width=64) -> dict:
    """Two items, different in every element at every step."""
    numbers = jnp.arange(8 * width, dtype=jnp.float32).reshape(8, width)
    return {
        "params": {"kernel": numbers + step / 7, "half": (numbers * step).astype(jnp.bfloat16)},
        "rest": {"step": jnp.int32(step)},
    }


def opened(folder, keep_last=2, keep_best=1, **options) -> Checkpoints:
    config = base().checkpoint
    config.keep_last, config.keep_best = keep_last, keep_best
    return Checkpoints(folder, config, **options)


def abstract(tree):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def restore(folder, like=None, step=None, **options):
    checkpoints = opened(folder, **options)
    try:
        return checkpoints.restore(abstract(state(0)) if like is None else like, step)
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    """A folder with sound checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = opened(folder)
    for step in (4, 8):
        checkpoints.save(step, state(step), {"data": {"at": step}, "config": {}, "tokenizer": {}})
    checkpoints.close()
    return folder


@pytest.fixture
def run(two_saved, tmp_path):
    return shutil.copytree(two_saved, tmp_path / "run")


def assert_is(found, step):
    assert found[0] == step
    assert found[2]["data"] == {"at": step}
    jax.tree.map(np.testing.assert_array_equal, found[1], state(step))


def test_the_newest_is_restored(run):
    assert_is(restore(run), 8)
    assert_is(restore(run, step=4), 4)
    assert not (run / "checkpoints-damaged").exists()


def files(run) -> list:
    """The newest checkpoint's files; those that hold something come first."""
    found = [p for p in sorted((run / "checkpoints" / "8").rglob("*")) if p.is_file()]
    return [p for p in found if p.stat().st_size]


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(raw)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


HARM = {
    "deleted": lambda path: path.unlink(),
    "truncated": truncate,
    "flipped": lambda path: flip(path, path.stat().st_size // 2),
    "last flipped": lambda path: flip(path, -1),
}


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["flipped", *map(slow, ("deleted", "truncated", "last flipped"))])
def test_harm_to_any_file_is_found_or_harmless(name, two_saved, tmp_path, caplog, capfd):
    found = []
    for i, original in enumerate(files(two_saved)):
        copy = shutil.copytree(two_saved, tmp_path / str(i))
        HARM[name](copy / original.relative_to(two_saved))
        with caplog.at_level(logging.WARNING, "llm_jax"):
            caplog.clear()
            step, *rest = restore(copy)
        assert_is((step, *rest), step)
        assert step == (4 if (copy / "checkpoints-damaged" / "8").exists() else 8)
        assert ("checkpoint 8 is damaged" in caplog.text) == (step == 4)
        found.append(step)
    assert found.count(4) >= 3
    assert "orbax" not in capfd.readouterr().err.lower()


def test_flipped_array_bytes_and_meta_are_found(run, caplog):
    arrays = max((run / "checkpoints" / "8" / "params").rglob("d/*"), key=os.path.getsize)
    flip(arrays, arrays.stat().st_size // 2)
    assert_is(restore(run), 4)
    assert "checkpoint 8 is damaged" in caplog.text


def test_a_changed_digit_in_meta_is_found(run):
    """JSON that reads well but would continue with other data."""
    path = run / "checkpoints" / "8" / "meta" / "metadata"
    text = path.read_text()
    assert text.count('{\\"at\\": 8}') == 1
    path.write_text(text.replace('{\\"at\\": 8}', '{\\"at\\": 9}'))
    assert_is(restore(run), 4)


@pytest.mark.parametrize("item", ["", "params", "rest", "meta"])
def test_an_empty_folder_is_set_aside(item, run):
    folder = run / "checkpoints" / "8" / item
    shutil.rmtree(folder)
    folder.mkdir()
    assert_is(restore(run), 4)
    assert [p.name for p in (run / "checkpoints-damaged").iterdir()] == ["8"]


def test_a_step_saved_again_may_be_damaged_again(run):
    for name in ("8", "8x"):
        truncate(run / "checkpoints" / "8" / "meta" / "metadata")
        checkpoints = opened(run)
        assert checkpoints.restore(abstract(state(0)))[0] == 4
        assert (run / "checkpoints-damaged" / name).is_dir()
        checkpoints.save(8, state(8), {"data": {"at": 8}})
        checkpoints.close()
    assert_is(restore(run), 8)


def test_none_is_left(run, caplog):
    for step in ("4", "8"):
        truncate(run / "checkpoints" / step / "meta" / "metadata")
    assert restore(run) is None
    assert caplog.text.count("is damaged") == 2


def test_another_shape_is_refused_and_left_alone(run):
    with pytest.raises(ConfigError, match=r"kernel: float32\[8, 64\] there, float32\[8, 32\] here"):
        restore(run, abstract(state(0, width=32)))
    assert_is(restore(run), 8)


def test_an_optimizer_state_of_another_version_is_refused_and_its_weights_read(run):
    like = abstract(state(0))
    other = like | {"rest": {"optimizer": {"count": like["rest"]["step"]}}}
    message = (r"8/rest holds different arrays than .*step: int32\[\] there, absent here; "
               r"optimizer/count: absent there.*version that started it.*init_from")  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        restore(run, other)
    assert_is(restore(run), 8)
    assert restore(run, {"params": like["params"]})[0] == 8


def test_a_reader_leaves_everything_as_it_is(run):
    unfinished = run / "checkpoints" / "12.orbax-checkpoint-tmp"
    unfinished.mkdir()
    truncate(run / "checkpoints" / "8" / "meta" / "metadata")
    assert_is(restore(run, read_only=True), 4)
    with pytest.raises(ConfigError, match="--step=8.*damaged"):
        restore(run, step=8, read_only=True)
    with pytest.raises(ConfigError, match=r"--step=5.*\[4, 8\]"):
        restore(run, step=5, read_only=True)
    assert unfinished.exists()
    assert (run / "checkpoints" / "8").exists()


def test_the_best_outlives_keep_last_and_a_restart(tmp_path):
    losses = {1: 3.0, 2: 2.0, 3: 2.5, 4: float("nan"), 5: None, 6: 2.2, 7: 2.1}
    checkpoints = opened(tmp_path, keep_last=2, keep_best=2)
    for step, loss in losses.items():
        checkpoints.save(step, state(step), {"data": {}}, loss)
        if step == 5:  # as a restart would
            assert checkpoints.steps() == [2, 3, 4, 5]
            checkpoints.close()
            checkpoints = opened(tmp_path, keep_last=2, keep_best=2)
            checkpoints.restore(abstract(state(0)))
            assert checkpoints.losses == {2: 2.0, 3: 2.5}
            assert checkpoints.is_best(2.4)
            assert not checkpoints.is_best(2.5)  # of equal ones the first is kept
            assert not checkpoints.is_best(2.6)
            assert not checkpoints.is_best(float("nan"))
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "6", "7"]


def test_keep_best_0_keeps_the_newest_only(tmp_path):
    checkpoints = opened(tmp_path, keep_last=1, keep_best=0)
    for step, loss in ((1, 1.0), (2, 2.0)):
        assert not checkpoints.is_best(loss)
        checkpoints.save(step, state(step), {"data": {}}, loss)
    checkpoints.close()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_a_checkpoint_of_an_older_version_says_which_and_what_to_do(run):
    """As llm_jax 0.1 wrote it: one item of all arrays, and no layout in its JSON."""
    folder = run / "checkpoints" / "8"
    (folder / "params").rename(folder / "state")
    shutil.rmtree(folder / "rest")
    (file,) = (p for p in (folder / "meta").iterdir() if p.name == "metadata")
    meta = json.loads(json.loads(file.read_text())["json"])
    del meta["layout"], meta["arrays"]
    text = json.dumps(meta)
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    file.write_text(json.dumps({"digest": digest, "json": text}))
    with pytest.raises(ConfigError, match=r"has layout 1 \(1: llm_jax 0.1\).*Export it with"):
        restore(run)
    assert folder.is_dir() and not (run / "checkpoints-damaged").exists()
