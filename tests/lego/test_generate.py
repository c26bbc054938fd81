"""A whole split is drawn: the same frames for any batch, sharding and interruption; where they go and how they look."""

from __future__ import annotations

import io
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from projects.lego import convert, data, generate, train, weights
from projects.lego.config import SampleConfig
from projects.lego.data import Record
from tests.lego import tiny
from tests.lego.tiny import configured, settings


@pytest.fixture(scope="module")
def run(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned for an epoch."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("generate") / "run"
    train.main(settings(home, out, "optim.epochs=1", "optim.ema=0.5"))
    return out


def drawn(home: Path, run: Path, out: Path, *more: str) -> dict[str, bytes]:
    folder = generate.main(settings(home, run, f"sample.out={out}", *more))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in (folder / "images").rglob("*.jpg")}


@pytest.fixture(scope="module")
def one_by_one(home: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return drawn(home, run, tmp_path_factory.mktemp("frames") / "one", "sample.batch_size=1")


def test_every_record_gets_its_frame_in_the_shape_of_its_video(home: Path, one_by_one: dict[str, bytes]) -> None:
    records = data.load(configured(home, home / "x").data, "val")
    assert set(one_by_one) == {f"images/{record.target}" for record in records}
    for content in one_by_one.values():
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.size) == ("JPEG", (round(480 / 360 * 32), 32))
        pixels = np.asarray(image)
        assert pixels.max() > 200, "stretched to the whole range, and blurred a little by JPEG"
        assert pixels.min() < 55
    assert len(set(one_by_one.values())) == len(one_by_one)


@pytest.mark.parametrize("more", [("sample.batch_size=3",), ("sample.batch_size=2", "loader.workers=2")], ids=str)
def test_the_batch_changes_no_frame(
    home: Path, run: Path, tmp_path: Path, one_by_one: dict[str, bytes], more: tuple[str, ...]
) -> None:
    assert drawn(home, run, tmp_path / "frames", *more) == one_by_one


def test_stopped_and_started_again_the_frames_are_the_same(
    home: Path, run: Path, tmp_path: Path, one_by_one: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, draw = tmp_path / "frames", generate.draw

    def interrupted(*args: Any, **options: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return draw(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(generate, "draw", interrupted)
        first = drawn(home, run, out, "sample.batch_size=1")
    assert len(first) == 1
    assert drawn(home, run, out, "sample.batch_size=2") == one_by_one


@pytest.mark.parametrize("change", ["sample.seed=1", "sample.text_scale=3", "sample.image_scale=1", "sample.steps=4"])
def test_frames_of_other_settings_are_never_mixed(
    home: Path, run: Path, tmp_path: Path, one_by_one: dict[str, bytes], change: str
) -> None:
    out = tmp_path / "frames"
    drawn(home, run, out)
    with pytest.raises(ValueError, match=r"made with another sample; remove the folder"):
        drawn(home, run, out, change)
    assert drawn(home, run, tmp_path / "other", change) != one_by_one


def test_other_weights_are_never_mixed(home: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    train.main(settings(home, other, "optim.epochs=1", "run.seed=5"))
    drawn(home, run, tmp_path / "frames")
    with pytest.raises(ValueError, match="made with another weights"):
        drawn(home, other, tmp_path / "frames")


def test_the_shortcut_and_the_fast_solver(home: Path, run: Path, tmp_path: Path, one_by_one: dict[str, bytes]) -> None:
    def pixels(content: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(content))).astype(int)

    plain = drawn(home, run, tmp_path / "plain", "sample.shortcut=false")
    assert plain.keys() == one_by_one.keys()
    for name, content in plain.items():
        assert np.abs(pixels(content) - pixels(one_by_one[name])).max() <= 4, "rounding, then JPEG"
    fast = drawn(home, run, tmp_path / "fast", "sample.solver=dpmpp_2m")
    assert fast.keys() == one_by_one.keys()
    assert fast != one_by_one


def test_an_official_checkpoint_answers_with_its_average(home: Path, run: Path, tmp_path: Path) -> None:
    """Converted from a run: the same frames as the run's; the raw weights draw others. Its folder is the official."""
    path = tmp_path / "logs" / "epoch=1-step=3.ckpt"
    path.parent.mkdir()
    step = max((run / "checkpoints").glob("step_*.pt"))
    convert.main([str(step), str(path), "--to", "official", "--init", str(home / "sd.ckpt")])
    more = (f"ckpt={path}", "model.init=")
    folder = generate.main(settings(home, tmp_path / "visit", *more))
    assert folder == tmp_path / "logs/epoch=1-step=3/epoch=1-step=3-e=0-s=3-si=1.5"
    own = drawn(home, run, tmp_path / "own")
    official = {p.relative_to(folder).as_posix(): p.read_bytes() for p in (folder / "images").rglob("*.jpg")}
    assert official == own
    assert drawn(home, run, tmp_path / "raw", *more, "sample.weights=raw") != own


@pytest.mark.parametrize(
    ("settings_of", "name"),
    [
        ({}, "last-e=0-s=100-si=1.5"),
        ({"seed": 7, "steps": 20, "image_scale": 2.0}, "last-e=7-s=20-si=2.0"),
        ({"text_scale": 5.0}, "last-e=0-s=100-si=1.5-st=5"),
        ({"solver": "dpmpp_2m"}, "last-e=0-s=100-si=1.5-dpmpp_2m"),
    ],
)
def test_folders_are_named_as_the_reference_names_them(settings_of: dict, name: str) -> None:
    assert generate.folder(Path("runs/x/last.safetensors"), SampleConfig(**settings_of)) == Path("runs/x/last") / name
    assert generate.folder(Path("x.ckpt"), SampleConfig(out=Path("here"))) == Path("here")


def test_a_frame_that_cannot_be_read_is_named_and_the_others_are_drawn(home: Path, run: Path, tmp_path: Path) -> None:
    root = tmp_path / "home"
    shutil.copytree(home, root)
    (broken,) = list((root / "data/EgoGen/ego4d.fho/val").glob("*/0/pre_0002_0.jpg"))
    broken.write_bytes(b"")
    frames = drawn(root, run, tmp_path / "frames")
    assert len(frames) == 2
    assert str(broken) in (run / "run.log").read_text()


def test_weights_must_be_there(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no weights; train first"):
        generate.main(settings(home, tmp_path / "empty"))
    cfg = configured(home, tmp_path / "x", "model.init=")
    with tiny.started(cfg) as job, pytest.raises(ValueError, match=r"model\.init is empty"):
        weights.frozen(cfg, job)


# ------------------------------------------------------------------------------------------------- the written picture


def test_stretching_uses_the_picture_s_own_range() -> None:
    image = torch.tensor([[[0.5, 1.0], [1.5, 2.0]]]).repeat(3, 1, 1)
    pixels = generate.finish(image, (2, 2))
    assert pixels[..., 0].tolist() == [[0, 84], [169, 255]] or pixels[..., 0].tolist() == [[0, 85], [170, 255]]
    assert generate.finish(image, (2, 2), "clamp")[..., 0].tolist() == [[191, 255], [255, 255]]


def test_a_flat_picture_is_black_and_no_division_by_zero() -> None:
    assert generate.finish(torch.full((3, 4, 4), 0.7), (4, 4)).unique().tolist() == [0]


def test_without_metadata_the_frame_s_own_shape_counts(home: Path) -> None:
    cfg = configured(home, home / "x")
    (record, *_) = data.load(cfg.data, "val")
    bare = Record(**{**vars(record), "original_size": None})
    assert generate.written_size(record, cfg) == (32, 43)
    assert generate.written_size(bare, cfg) == (32, round(48 / 36 * 32))
