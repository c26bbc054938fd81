"""Checkpoints that survive kills, full disks and damage; weights from friendly and hostile files; fetching."""

# ruff: noqa: NPY002 - the legacy generator of numpy is what a checkpoint has to bring back

from __future__ import annotations

import collections
import functools
import hashlib
import http.server
import json
import multiprocessing
import os
import pickle
import random
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from core.checkpoint import (
    NUMPY,
    Checkpoints,
    fetch,
    load_weights,
    read_inert,
    read_weights,
    save_weights,
    write_atomic,
)
from core.optim import OptimConfig
from core.step import TrainStep


class Box:
    """A part: whatever state it is given."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# ------------------------------------------------------------------------------------------------------ write_atomic


def test_write_atomic_writes_text_and_bytes_and_makes_folders(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a/b/c.txt", "größer")
    assert (tmp_path / "a/b/c.txt").read_bytes() == "größer".encode()
    write_atomic(str(tmp_path / "a/b/c.txt"), b"\x00\x01")
    assert (tmp_path / "a/b/c.txt").read_bytes() == b"\x00\x01"
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["c.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "atomic", "")
    save_weights(net(), tmp_path / "weights")
    path = Checkpoints(tmp_path).save(1, {"model": net()})
    assert path is not None
    for each in (tmp_path / "atomic", tmp_path / "weights", path, path.with_name("last.safetensors")):
        assert each.stat().st_mode == (tmp_path / "plain").stat().st_mode


# --------------------------------------------------------------------------------------------------- save and restore


def test_nothing_to_restore_is_step_zero(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).restore({"model": net()}) == 0


def test_a_whole_training_state_comes_back(tmp_path: Path) -> None:
    cfg = OptimConfig(name="adamw", lr=0.1, accumulate=2, ema=0.9)

    def make() -> dict[str, Any]:
        model = net()
        return {
            "model": model,
            "step": TrainStep(model, cfg, batches_per_epoch=4),
            "loader": Box({"epoch": 1, "batch": 3}),
        }

    def advance(parts: dict[str, Any], count: int) -> None:
        for _ in range(count):
            with parts["step"].forward() as model:
                loss = (model(torch.randn(6, 3)) * random.random() * np.random.rand()).square().mean()
            parts["step"].backward(loss)

    straight = make()
    advance(straight, 3)
    path = Checkpoints(tmp_path).save(1, straight, {"val/top1": 0.5})
    assert path == tmp_path / "checkpoints/step_000000001.pt"
    advance(straight, 3)

    resumed = make()
    resumed["loader"].state = None
    assert Checkpoints(tmp_path).restore(resumed) == 1
    assert resumed["loader"].state == {"epoch": 1, "batch": 3}
    advance(resumed, 3)
    assert equal(resumed["model"], straight["model"])
    assert equal(resumed["step"].eval_model, straight["step"].eval_model)


def test_published_weights_are_the_average_with_step_and_metrics(tmp_path: Path) -> None:
    model = net()
    step = TrainStep(model, OptimConfig(ema=0.5), batches_per_epoch=1)
    nn.init.constant_(step.eval_model[0].weight, 7.0)
    saved = Checkpoints(tmp_path, best="val/top1")
    saved.save(5, {"model": model, "step": step}, {"val/top1": 0.25, "val/loss": 1.5})
    for name in ("best", "last"):
        tensors, about = read_weights(tmp_path / f"checkpoints/{name}.safetensors")
        assert torch.equal(tensors["0.weight"], torch.full((4, 3), 7.0))
        assert about == {"step": 5, "metrics": {"val/top1": 0.25, "val/loss": 1.5}}
    saved.save(6, {"model": model})
    assert torch.equal(read_weights(tmp_path / "checkpoints/last.safetensors")[0]["0.weight"], model[0].weight)


def test_published_weights_say_what_they_are(tmp_path: Path) -> None:
    model = net()
    Checkpoints(tmp_path, best="m", about={"classes": ["Billiards", "YoYo"]}).save(3, {"model": model}, {"m": 1.0})
    for name in ("best", "last"):
        about = read_weights(tmp_path / f"checkpoints/{name}.safetensors")[1]
        assert (about["classes"], about["step"]) == (["Billiards", "YoYo"], 3)


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [("max", [0.5, 0.5, 0.3, float("nan"), 0.4, 0.2], 2), ("min", [0.9, 0.1, 0.1, 0.4, float("nan"), 0.2], 3)],
)
def test_the_newest_and_the_best_are_kept(tmp_path: Path, mode: Any, values: list[float], best: int) -> None:
    saved = Checkpoints(tmp_path, best="score", mode=mode, keep=2)
    for step, value in enumerate(values, start=1):
        saved.save(step, {"model": nn.Linear(1, 1), "box": Box({"step": step})}, {"score": value})
        assert max(saved.steps()) == step
    assert saved.steps() == [best, 5, 6]
    assert read_weights(saved.folder / "best.safetensors")[1]["step"] == best

    # A resumed run goes on comparing with the best so far.
    resumed = Checkpoints(tmp_path, best="score", mode=mode, keep=2)
    assert resumed.restore({"box": Box()}) == 6
    assert resumed.best == (best, values[best - 1])
    resumed.save(7, {"model": nn.Linear(1, 1)}, {"score": 0.15})
    assert resumed.steps() == [best, 6, 7]
    assert read_weights(saved.folder / "best.safetensors")[1]["step"] == best


def test_saving_between_evaluations_keeps_the_best(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, best="score", keep=1)
    saved.save(1, {"box": Box(1)}, {"score": 1.0})
    for step in (2, 3):
        saved.save(step, {"box": Box(1)})
    assert saved.steps() == [1, 3]


def test_metrics_without_the_best_key_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no 'val/top1'.*there is val/top-1"):
        Checkpoints(tmp_path, best="val/top1").save(1, {"box": Box(1)}, {"val/top-1": 1.0, "val/loss": 2.0})


def test_arguments_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode is 'best'; expected max or min"):
        Checkpoints(tmp_path, mode="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=40)
@given(plain)
def test_saving_then_restoring_is_the_identity(tmp_path_factory: pytest.TempPathFactory, state: Any) -> None:
    out = tmp_path_factory.mktemp("run")
    Checkpoints(out).save(3, {"box": Box(state)})
    box = Box()
    assert Checkpoints(out).restore({"box": box}) == 3
    assert box.state == state
    assert type(box.state) is type(state)


def test_numpy_numbers_become_plain_and_views_stay_small(tmp_path: Path) -> None:
    state = {
        "a": np.float64(0.5),
        "b": np.int32(3),
        "view": torch.zeros(1_000_000)[:2],
        "dict": collections.OrderedDict(x=1),
    }
    path = Checkpoints(tmp_path).save(1, {"box": Box(state)})
    box = Box()
    Checkpoints(tmp_path).restore({"box": box})
    assert (box.state["a"], box.state["b"], box.state["dict"]) == (0.5, 3, {"x": 1})
    assert torch.equal(box.state["view"], torch.zeros(2))
    assert path is not None
    assert path.stat().st_size < 100_000


def test_what_could_not_be_read_back_is_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loader\.rng\[0\] of the checkpoint is a random\.Random"):
        Checkpoints(tmp_path).save(1, {"loader": Box({"rng": [random.Random(0)]})})
    assert Checkpoints(tmp_path).steps() == []


def test_all_random_generators_go_on(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(2).tolist()]

    random.seed(1)
    np.random.seed(1)
    draw()
    Checkpoints(tmp_path).save(1, {"box": Box(0)})
    expected = [draw(), draw()]
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    Checkpoints(tmp_path).restore({"box": Box()})
    assert [draw(), draw()] == expected


def test_a_checkpoint_of_other_parts_is_refused_by_file_and_part(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(1, {"model": net()})
    with pytest.raises(ValueError, match=r"step_000000001\.pt: has no state of loader; it has model"):
        Checkpoints(tmp_path).restore({"model": net(), "loader": Box()})
    with pytest.raises(ValueError, match=rf"{path}: the state of 'model' does not fit this run.*2\.weight"):
        Checkpoints(tmp_path).restore({"model": nn.Sequential(*net()[:2], nn.Linear(4, 9))})


# ------------------------------------------------------------------------------------------- kills, full disks, damage


def _save_forever(out: Path, first: int) -> None:
    saved = Checkpoints(out, best="score", keep=2)
    model = nn.Linear(64, 256)
    for step in range(first, 100_000):
        nn.init.constant_(model.weight, step)
        saved.save(step, {"model": model, "box": Box({"step": step})}, {"score": float(step)})


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process that does nothing but save is killed at random moments; its successor goes on where it was."""
    rng = random.Random(0)
    reached = 0
    for _ in range(12):
        process = multiprocessing.get_context("fork").Process(target=_save_forever, args=(tmp_path, reached + 1))
        process.start()
        saved = Checkpoints(tmp_path, keep=2)
        end = time.monotonic() + 60
        while len(saved.steps()) < 1 or saved.steps()[-1] <= reached:
            assert time.monotonic() < end, "the process did not save anything"
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.join()
        newest = saved.steps()[-1]
        model, box = nn.Linear(64, 256), Box()
        step = saved.restore({"model": model, "box": box})
        assert step == newest > reached
        assert box.state == {"step": step}
        assert torch.equal(model.weight, torch.full_like(model.weight, step))
        for name in ("best", "last"):
            tensors, about = read_weights(saved.folder / f"{name}.safetensors")
            assert torch.equal(tensors["weight"], torch.full((256, 64), float(about["step"])))
            assert about["step"] in (range(step + 1) if name == "last" else (step, step + 1))
        reached = step
    assert "damaged" not in caplog.text
    saved.save(reached + 1, {"box": Box(1)})
    assert not list(saved.folder.glob(".*")), "what the killed processes left is cleaned away"


@pytest.fixture
def small_files() -> Iterator[None]:
    """From the middle of the test on, no file may grow beyond 64 kB: a write fails as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_warns_and_the_run_goes_on(
    tmp_path: Path, small_files: None, caplog: pytest.LogCaptureFixture
) -> None:
    saved = Checkpoints(tmp_path, best="score")
    model = nn.Linear(100, 1000)
    nn.init.constant_(model.weight, 1.0)
    good = saved.save(1, {"model": model}, {"score": 1.0})
    assert good is not None

    nn.init.constant_(model.weight, 2.0)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    assert saved.save(2, {"model": model}, {"score": 0.5}) is None
    assert saved.save(3, {"model": model}, {"score": 2.0}) is None
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "checkpoint of step 2 was not written completely" in caplog.text
    assert "File too large" in caplog.text
    assert "the last whole checkpoint is step_000000001.pt" in caplog.text
    assert sorted(path.name for path in saved.folder.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "step_000000001.pt",
    ]
    restored = nn.Linear(100, 1000)
    assert saved.restore({"model": restored}) == 1
    assert torch.equal(restored.weight, torch.ones(1000, 100))
    assert saved.best == (1, 1.0)
    assert saved.save(4, {"model": model}) is not None


def test_a_full_disk_before_the_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    assert Checkpoints(tmp_path).save(1, {"box": Box(1)}) is None
    assert "No space left on device" in caplog.text
    assert "there is no checkpoint yet" in caplog.text


def _flip(path: Path) -> None:
    """Change one byte in the middle of the largest tensor."""
    data = bytearray(path.read_bytes())
    place = data.find(b"\x00\x00\x40\x40" * 16)  # 3.0 in float32
    assert place > 0
    data[place] ^= 1
    path.write_bytes(data)


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage", [_flip, _halve, lambda path: path.write_bytes(b""), lambda path: path.write_text("x" * 99)]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    saved = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        saved.save(step, {"box": Box({"w": torch.full((1000,), float(step))})})
    damage(saved.folder / "step_000000003.pt")
    box = Box()
    assert saved.restore({"box": box}) == 2
    assert torch.equal(box.state["w"], torch.full((1000,), 2.0))
    assert "step_000000003.pt is damaged" in caplog.text
    saved.save(3, {"box": Box({"w": torch.full((1000,), 3.0)})})
    assert saved.restore({"box": box}) == 3


def test_going_back_does_not_count_later_checkpoints_as_new(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30):
        saved.save(step, {"box": Box(step)})
    _halve(saved.folder / "step_000000030.pt")
    box = Box()
    assert saved.restore({"box": box}) == 20
    saved.save(25, {"box": Box(25)})
    assert saved.steps() == [20, 25, 30]
    assert saved.restore({"box": box}) == 25


# ------------------------------------------------------------------------------------------------ reading weights


class Evil:
    """A pickle that runs a command when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_malicious_file_runs_nothing_and_is_named(tmp_path: Path, form: str) -> None:
    path, proof = tmp_path / "weights.pth", tmp_path / "pwned"
    tree = {"state_dict": {"w": torch.ones(2)}, "cfg": Evil(proof)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(tree["cfg"], protocol=2))
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        ValueError, match=r"weights\.pth: this pickle needs posix\.system.*nothing of it was loaded.*allow"
    ):
        read_weights(path)
    assert not proof.exists()


def test_harmless_classes_can_be_allowed(tmp_path: Path) -> None:
    path = tmp_path / "numpy.pth"
    torch.save({"state_dict": {"w": np.arange(3.0)}, "epoch": np.int64(7), "score": np.float32(0.5)}, path)
    with pytest.raises(ValueError, match="numpy"):
        read_weights(path)
    tensors, about = read_weights(path, allow=NUMPY)
    assert torch.equal(tensors["w"], torch.arange(3.0, dtype=torch.float64))
    assert about["key"] == "state_dict"


def test_files_of_numpy_1_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"model": {"w": np.ones(2, np.float32)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert torch.equal(read_weights(path, allow=NUMPY)[0]["w"], torch.ones(2))


def test_a_harmless_class_can_stand_in_for_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "config.pth"
    torch.save(
        {"state_dict": {"w": torch.ones(1)}, "version": complex(1, 2)}, path, _use_new_zipfile_serialization=False
    )
    path.write_bytes(path.read_bytes().replace(b"c__builtin__\ncomplex", b"csome_package\nVersion"))
    with pytest.raises(ValueError, match=r"some_package\.Version"):
        read_weights(path)
    assert torch.equal(read_weights(path, allow=[(complex, "some_package.Version")])[0]["w"], torch.ones(1))


class Settings(dict):
    """What a training framework may leave in its checkpoints: a dictionary with attributes of its own."""


class Callback:
    """Another of its objects."""

    def __init__(self) -> None:
        self.monitor, self.scores = "val_loss", [1, 2]

    def __reduce__(self) -> tuple:
        return (eval, ("print('never')",), {"monitor": self.monitor})


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_objects_of_a_framework_become_plain_dicts_that_run_nothing(tmp_path: Path, form: str, capsys) -> None:
    settings = Settings(lr=0.1, model=Settings(name="x"))
    settings.frozen = True
    tree = {
        "state_dict": {"w": torch.ones(2)},
        "hyper_parameters": {"cfg": settings},
        "callbacks": {Callback: {"best": np.float64(1.5)}, "last": Callback()},
        "path": Path("runs/x"),
    }
    path = tmp_path / "lightning.ckpt"
    torch.save(tree, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match="nothing of it was loaded"):
        read_weights(path)
    tensors, about = read_weights(path, allow="inert")
    assert torch.equal(tensors["w"], torch.ones(2))
    assert about["key"] == "state_dict"
    assert load_weights(nn.ParameterDict({"w": torch.zeros(2)}), path, allow="inert").loaded == ("w",)
    assert read_inert(path)["callbacks"]["last"] == {}
    with pytest.raises(ValueError, match="no such file"):
        read_inert(tmp_path / "absent.ckpt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old format"])
def test_a_large_file_can_stay_on_the_disk(tmp_path: Path, new: bool) -> None:
    """Mapped tensors are those of the file; changing one changes nothing on the disk."""
    path = tmp_path / "large.ckpt"
    torch.save({"state_dict": {"w": torch.arange(4.0)}}, path, _use_new_zipfile_serialization=new)
    for allow in ((), "inert"):
        tensors, _ = read_weights(path, allow=allow, mapped=True)
        assert tensors["w"].tolist() == [0, 1, 2, 3]
        tensors["w"].add_(1)
        assert read_weights(path)[0]["w"].tolist() == [0, 1, 2, 3]


def test_inert_reading_still_refuses_commands(tmp_path: Path) -> None:
    path, proof = tmp_path / "weights.pth", tmp_path / "pwned"
    torch.save({"state_dict": {"w": torch.ones(2)}, "cfg": Evil(proof)}, path)
    with pytest.raises(ValueError, match=r"weights\.pth: "):
        read_weights(path, allow="inert")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"weights\.pth: this pickle is not of the plain kind"):
        read_weights(path, allow="inert")
    assert not proof.exists()


LAYOUTS = {
    "": {"a.w": torch.ones(2), "b": torch.zeros(1)},
    "model_state": {"model_state": {"w": torch.ones(2)}, "epoch": 3, "cfg": "text"},
    "state_dict": {"state_dict": {"w": torch.ones(2)}, "optimizer": {"state": {}}},
    "state_dict_ema": {"state_dict": {"w": torch.zeros(2)}, "state_dict_ema": {"w": torch.ones(2)}, "epoch": 3},
    "model": {"model": {"w": torch.ones(2)}, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "net": {"net": {"w": torch.ones(2)}, "epoch": 1},
}


@pytest.mark.parametrize("key", LAYOUTS)
def test_weights_are_found_where_official_files_keep_them(tmp_path: Path, key: str) -> None:
    torch.save(LAYOUTS[key], tmp_path / "x.pth")
    tensors, about = read_weights(tmp_path / "x.pth")
    assert about["key"] == key
    assert torch.equal(next(iter(tensors.values())), torch.ones(2))
    assert about["others"] == (["state_dict"] if key == "state_dict_ema" else [])
    assert about.get("epoch") == LAYOUTS[key].get("epoch")


def test_a_key_chooses_among_several(tmp_path: Path) -> None:
    tree = {
        "state_dict": {"w": torch.ones(1)},
        "state_dict_ema": {"w": torch.zeros(1)},
        "deep": {"er": {"w": torch.ones(3)}},
    }
    torch.save(tree, tmp_path / "x.pth")
    assert torch.equal(read_weights(tmp_path / "x.pth", "state_dict")[0]["w"], torch.ones(1))
    assert torch.equal(read_weights(tmp_path / "x.pth", "deep.er")[0]["w"], torch.ones(3))
    with pytest.raises(ValueError, match=r"x\.pth: expected weights at 'ema'.*choose one with `key`"):
        read_weights(tmp_path / "x.pth", "ema")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_stripped_when_all_have_them(tmp_path: Path, prefix: str) -> None:
    torch.save({f"{prefix}a": torch.ones(1), f"{prefix}b": torch.ones(1)}, tmp_path / "x.pth")
    assert list(read_weights(tmp_path / "x.pth")[0]) == ["a", "b"]
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.pth")
    assert list(read_weights(tmp_path / "x.pth")[0]) == ["module.a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged, or no file that torch.save wrote"),
        (b"hello world" * 9, "damaged, or no file that torch.save wrote"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{nonsense", "damaged, or no safetensors file"),
        (b"PK\x03\x04" + b"0" * 200, "damaged, or no file that torch.save wrote"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: {message}"):
        read_weights(path)


def test_files_without_weights_say_what_they_hold(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": {"state": {}}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: expected weights by name.*model_state.*'optimizer': 'dict'"):
        read_weights(tmp_path / "x.pth")
    torch.save(torch.ones(3), tmp_path / "x.pth")
    with pytest.raises(ValueError, match="the file holds Tensor"):
        read_weights(tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"absent\.pth: no such file"):
        read_weights(tmp_path / "absent.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "program.pt")
    with pytest.raises(ValueError, match=r"program\.pt: a TorchScript program"):
        read_weights(tmp_path / "program.pt")


def test_our_own_checkpoint_is_a_file_of_weights_too(tmp_path: Path) -> None:
    model = net()
    path = Checkpoints(tmp_path).save(7, {"model": model, "step": TrainStep(model, OptimConfig(), batches_per_epoch=1)})
    assert path is not None
    tensors, about = read_weights(path)
    assert (about["key"], about["step"]) == ("parts.model", 7)
    assert torch.equal(tensors["0.weight"], model[0].weight)


# ---------------------------------------------------------------------------------------------------- saving weights


def test_saved_weights_come_back_with_their_metadata(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "x/model.safetensors"
    save_weights(model, path, {"step": 3, "classes": ["a", "b"], "note": "text"})
    other = net()
    report = load_weights(other, path)
    assert equal(other, model)
    assert len(report.loaded) == len(model.state_dict())
    assert read_weights(path)[1] == {"step": 3, "classes": ["a", "b"], "note": "text"}
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["a", "b"]


def test_tied_and_strided_weights_are_saved_whole(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Conv3d(2, 4, 3, bias=False), "b": nn.Conv3d(2, 4, 3, bias=False)})
    weight = model["a"].weight
    weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
    model["b"].weight = weight
    save_weights(model, tmp_path / "x.safetensors")
    tensors, _ = read_weights(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a.weight"], weight)
    assert torch.equal(tensors["b.weight"], weight)


# --------------------------------------------------------------------------------------------------- loading weights


def test_rules_rename_in_order_and_the_report_tells() -> None:
    model = nn.ModuleDict({"stem": nn.Linear(2, 3), "head": nn.Linear(3, 2)})
    w = {"s1.conv.weight": torch.ones(3, 2), "s1.conv.bias": torch.ones(3), "fc.weight": torch.ones(2, 3, 1, 1)}
    w |= {"fc.bias": torch.ones(2), "momentum.fc": torch.ones(9), "lr": torch.ones(1)}
    report = load_weights(
        model,
        w,
        rules=[
            (r"^s(\d)\.", r"stage\1."),
            (r"^stage1\.conv", "stem"),
            (r"^fc", lambda match: "head"),
            ("^lr$", lambda _: None),
        ],
        drop=["^momentum"],
    )
    assert torch.equal(model["stem"].weight, torch.ones(3, 2))
    assert torch.equal(model["head"].weight, torch.ones(2, 3))
    assert dict(report.renamed) == {
        "s1.conv.weight": "stem.weight",
        "s1.conv.bias": "stem.bias",
        "fc.weight": "head.weight",
        "fc.bias": "head.bias",
    }
    assert report.loaded == ("stem.weight", "stem.bias", "head.weight", "head.bias")
    assert dict(report.reshaped) == {"head.weight": "(2, 3, 1, 1) -> (2, 3)"}
    assert set(report.dropped) == {"momentum.fc", "lr"}
    assert (report.missing, report.unexpected) == ((), ())
    assert str(report) == (
        "loaded 4 tensors from the given state-dict, 4 renamed, 1 reshaped (head.weight), 2 dropped (momentum.fc, lr)"
    )


def test_a_dropped_head_may_stay_as_it_was(tmp_path: Path) -> None:
    official, model = net(), nn.Sequential(*net()[:2], nn.Linear(4, 50))
    head = model[2].weight.detach().clone()
    torch.save({"model_state": official.state_dict(), "epoch": 9}, tmp_path / "k400.pyth")
    report = load_weights(model, str(tmp_path / "k400.pyth"), drop=[r"^2\."])
    assert torch.equal(model[0].weight, official[0].weight)
    assert torch.equal(model[2].weight, head)
    assert report.missing == report.dropped == ("2.weight", "2.bias")
    assert str(report).startswith(
        f"loaded 7 tensors from {tmp_path}/k400.pyth at 'model_state', 2 dropped (2.weight, 2.bias)"
    )


def test_the_report_says_which_of_several_weights_were_taken(tmp_path: Path) -> None:
    tree = {"state_dict": net().state_dict(), "state_dict_ema": net().state_dict()}
    torch.save(tree, tmp_path / "x.pth")
    report = load_weights(net(), tmp_path / "x.pth")
    assert report.source == f"{tmp_path}/x.pth at 'state_dict_ema' (it also has state_dict)"


def test_what_no_rule_names_is_an_error_with_the_nearest_names() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(2, 3), "head": nn.Linear(3, 2)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    w = {"encodr.weight": torch.ones(3, 2), "encoder.bias": torch.ones(3), "head.weight": torch.ones(400, 3)}
    with pytest.raises(ValueError, match="the weights of the given state-dict do not fit ModuleDict") as raised:
        load_weights(model, w)
    text = str(raised.value)
    assert "missing (2):\n    encoder.weight  (nearest: encodr.weight)\n    head.bias" in text
    assert "unexpected (1):\n    encodr.weight  (nearest: encoder.weight)" in text
    assert "of another shape (1):\n    head.weight: (400, 3) in the file, (2, 3) in the model" in text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "nothing was loaded"
    with pytest.raises(ValueError, match=r"missing \(1\):\n    head\.bias"):
        load_weights(model, w, drop=["encodr", "head.weight"], allow_missing=["encoder.weight"])


def test_two_names_for_one_weight_are_refused() -> None:
    with pytest.raises(ValueError, match=r"renamed to 'weight': 'a\.weight' and 'b\.weight'"):
        load_weights(
            nn.Linear(1, 1), {"a.weight": torch.ones(1, 1), "b.weight": torch.ones(1, 1)}, rules=[("^.*\\.", "")]
        )


def test_thousands_of_wrong_names_are_answered_soon() -> None:
    """A few names are shown, each with its likest; comparing all with all would take minutes."""
    model = nn.ModuleDict({f"layer_{i}": nn.BatchNorm1d(1) for i in range(1000)})
    w = {name.replace("layer_", "blocks.stage.unit"): value for name, value in model.state_dict().items()}
    start = time.process_time()
    with pytest.raises(ValueError, match=r"missing \(5000\)") as raised:
        load_weights(model, w)
    assert time.process_time() - start < 30, "a bound against quadratic behaviour, not a measurement"
    assert str(raised.value).count("\n") < 40
    assert "..." in str(raised.value)


def test_loading_keeps_the_type_and_device_of_the_model() -> None:
    model = nn.Linear(2, 2, bias=False).half()
    load_weights(model, {"weight": torch.full((2, 2), 0.5, dtype=torch.float64)})
    assert model.weight.dtype == torch.float16
    assert torch.equal(model.weight, torch.full((2, 2), 0.5, dtype=torch.float16))


# ------------------------------------------------------------------------------------------------------------- fetch


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, list[str]]]:
    """A web site on this machine: its address, its folder, the requests it got."""
    folder, requests = tmp_path / "site", []
    folder.mkdir()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, text: str, *args: object) -> None:
            requests.append(text % args)

    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    except OSError as error:
        pytest.skip(f"needs a local socket, which this machine forbids ({error})")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, requests
    server.shutdown()
    server.server_close()
    thread.join()


def test_fetch_downloads_once(site: tuple[str, Path, list[str]]) -> None:
    address, folder, requests = site
    (folder / "w.bin").write_bytes(b"weights")
    first = fetch(f"{address}/w.bin")
    assert first.read_bytes() == b"weights"
    assert fetch(f"{address}/w.bin") == first
    assert len(requests) == 1


def test_fetch_verifies_what_it_downloads(site: tuple[str, Path, list[str]]) -> None:
    address, folder, _ = site
    (folder / "w.bin").write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    assert fetch(f"{address}/w.bin#sha256={right.upper()}").read_bytes() == b"weights"
    with pytest.raises(
        ValueError, match=rf"expected sha256 {'0' * 64}, the file has {right}; delete .*w\.bin and try again"
    ):
        fetch(f"{address}/w.bin#sha256={'0' * 64}")


def test_fetch_without_the_file_says_where_to_put_it(site: tuple[str, Path, list[str]]) -> None:
    address, _, _ = site
    url = f"{address}/models/absent.pyth"
    with pytest.raises(ValueError, match=rf"cannot download {url} .*404.*put it at ") as raised:
        fetch(url)
    place = Path(str(raised.value).rpartition(" put it at ")[2])
    place.write_bytes(b"by hand")
    assert fetch(url) == place


def test_fetch_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot download http://127\.0\.0\.1:9/x\.pt .*without a network"):
        fetch("http://127.0.0.1:9/x.pt")


def test_fetch_takes_local_files(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"weights")
    assert fetch(path) == path
    assert fetch(f"{path}#sha256={hashlib.sha256(b'weights').hexdigest()}") == path
    with pytest.raises(ValueError, match=r"expected sha256 .*get it again"):
        fetch(f"{path}#sha256={'1' * 64}")
    with pytest.raises(ValueError, match=r"absent\.pt: no such file"):
        fetch(tmp_path / "absent.pt")
