"""Image features on the fly and projected once: the same figures as from the files, and what is kept of them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from core import config
from core.checkpoint import Store
from projects.lego import batches, cache, data, extract, model, train
from projects.lego.config import Config
from projects.lego.model import vlm_files
from projects.lego.model.vlm import Vlm
from projects.lego.sight import open_sight
from tests.lego import tiny
from tests.lego.test_vlm import TEXT, VISION
from tests.runs import rows
from tests.support import GOLDEN

ROWS, PATCHES, WIDTH = 6, 4, 32  # pairs to train on, patches of a frame, width of a token
CLOSE = 1e-5  # of losses and norms of gradients; other features change them by more
PLAIN = ("model.feature_width=64", "model.dropout=0", "data.vision_side=28", "data.vllm=ours", "optim.epochs=1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `home`, with the features that a language model wrote: `ours` as released, `patches` of CLIP alone."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("sight")
    tiny.write_dataset(root / "data", width=64)
    tiny.write_stable_diffusion(root / "sd.ckpt")
    tiny.write_tokenizer(root / "merges.txt")
    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "lego" / "llava_labels")
    vlm_files.save_vlm(Vlm(VISION, TEXT | {"vocab_size": 520}), tokenizer, root / "vlm")
    for split in ("train", "val"):
        args = [
            f"run.out={root / 'extract'}", "run.device=cpu", f"data.root={root / 'data'}", "extract.longest=4",
            f"extract.vlm={root / 'vlm'}", "loader.workers=0", f"extract.split={split}",
        ]  # fmt: skip
        extract.main([*args, "data.vllm=ours"])
        extract.main([*args, "data.vllm=patches", "extract.image=patches"])
    return root


TRAINED = "model.train_conditioner=true"


def args_of(base: Path, out: Path, *more: str) -> list[str]:
    return tiny.settings(base, out, *PLAIN, *more)


def figures(out: Path) -> list[dict[str, Any]]:
    keys = ("step", "train/loss_simple", "train/loss_epoch", "val/loss_simple", "grad_norm")
    return [{key: row[key] for key in keys if key in row} for row in rows(out)]


def near(found: Path, wanted: Path) -> None:
    """The same figures but for 16 bit features."""
    for ours, theirs in zip(figures(found), figures(wanted), strict=True):
        assert ours == pytest.approx(theirs, rel=0, abs=CLOSE)


@pytest.fixture(scope="module")
def from_files(base: Path) -> Path:
    """What training is like with the files as released."""
    out = base / "files" / "run"
    train.main(args_of(base, out))
    return out


def test_features_on_the_fly_are_those_of_the_files(base: Path, tmp_path: Path) -> None:
    """Folded into one map, made from frames or stored patches; and unfolded, when the projection learns."""
    vision = f"model.vision={base / 'vlm'}"
    for kind, vllm in (("frames", "ours"), ("patches", "patches")):
        for trained in ("true", "false"):
            more = [f"data.image_features={kind}", vision, f"data.vllm={vllm}", f"model.train_conditioner={trained}"]
            cfg = config.load(Config, None, args_of(base, tmp_path / "run", *more))
            lego = model.build(cfg.model).eval()
            with tiny.started(cfg) as job:
                sight = open_sight(cfg, lego.conditioner, job)
            assert sight is not None
            assert sight.folds == (trained == "false")
            pairs = data.Pairs(data.load(cfg.data, "val"), cfg.data, cfg.model)
            batch = batches.stack([pairs.sample(index, None) for index in range(3)])  # type: ignore[arg-type]
            assert batch["pixels" if kind == "frames" else "image_features"].shape[0] == 3
            made = lego.conditioner.project(sight(batch))
            stored = [data.read_features(data.feature_path(cfg.data.root, r, "image", "ours"), "image").float()
                      for r in pairs.records]  # fmt: skip
            wanted = lego.conditioner.projection_img(torch.stack(stored))
            assert made.shape == (3, PATCHES, WIDTH)
            torch.testing.assert_close(made, wanted, atol=3e-3, rtol=1e-2)


@pytest.mark.parametrize("kind", ["frames", "patches"])
def test_training_on_the_fly_is_training_from_files(base: Path, from_files: Path, tmp_path: Path, kind: str) -> None:
    vllm = "patches" if kind == "patches" else "ours"
    more = [f"data.image_features={kind}", f"model.vision={base / 'vlm'}", f"data.vllm={vllm}"]
    train.main(args_of(base, tmp_path / "run", *more))
    near(tmp_path / "run", from_files)


def test_training_looks_at_the_image_features(base: Path, from_files: Path, tmp_path: Path) -> None:
    """So that the figures which are compared here can differ at all."""
    released = data.RELEASED["ego4d"].vllm
    train.main(args_of(base, tmp_path / "run", f"data.vllm={released}", "model.features=image"))
    train.main(args_of(base, tmp_path / "own", "model.features=image"))
    other, own = (figures(tmp_path / name)[0]["grad_norm"] for name in ("run", "own"))
    assert abs(other - own) > 10 * CLOSE


@pytest.mark.parametrize("origin", ["frames", "files"])
def test_projected_features_train_the_same_and_take_little(
    base: Path, from_files: Path, tmp_path: Path, origin: str
) -> None:
    """From frames by CLIP, or from the files, which may go when the cache is full."""
    root = tmp_path / "home"
    shutil.copytree(base, root, ignore=shutil.ignore_patterns("extract", "files"))
    more = ["data.image_features=projected", *([f"model.vision={root / 'vlm'}"] if origin == "frames" else [])]
    out = tmp_path / "run"
    train.main(args_of(root, out, *more))
    near(out, from_files)
    log = (out / "run.log").read_text()
    assert "projected image features of 6 frames, 0.00 GB (" in log
    assert "image features" in log.split("cached: ")[1].splitlines()[0]
    (folder,) = (tmp_path / "cache").glob("tokens-*")
    store = Store(folder)
    assert len(store) == ROWS + 3
    row = store["ego4d/train/ego4d-train-0/0"]
    assert (row.shape, row.dtype) == ((PATCHES, WIDTH), torch.float16)
    # A second run computes nothing, and reads neither CLIP's features nor the files.
    for path in (root / "data/ego4d/vllm_image_feature/ours").rglob("*.npy"):
        path.unlink()
    train.main(args_of(root, tmp_path / "again", *more, "data.flip_features=true", "data.flip=0"))
    log = (tmp_path / "again" / "run.log").read_text()
    assert "projected image features of" not in log
    assert "are missing" not in log


def test_a_stopped_projection_goes_on(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "ROWS_PER_FILE", 2)
    args = args_of(base, tmp_path / "run", "data.image_features=projected", f"model.vision={base / 'vlm'}")
    project, calls = model.Conditioner.project, []

    def interrupted(self: Any, features: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return project(self, features)

    with monkeypatch.context() as patch:
        patch.setattr(model.Conditioner, "project", interrupted)
        assert train.main(args) == {}
    (folder,) = (tmp_path / "cache").glob("tokens-*")
    first = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(first) == 2
    assert train.main(args)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert len(Store(folder)) == ROWS + 3


def test_mirrored_pairs_may_mirror_what_is_projected(base: Path, tmp_path: Path) -> None:
    """Patch by patch: the grid is mirrored before or after the map."""
    losses = {}
    for name, more in {
        "files": [], "projected": ["data.image_features=projected"], "kept": ["data.flip_features=false"]
    }.items():  # fmt: skip
        train.main(args_of(base, tmp_path / name / "run", "data.flip=1", "data.flip_features=true", *more))
        losses[name] = tmp_path / name / "run"
    near(losses["projected"], losses["files"])
    assert figures(losses["kept"]) != figures(losses["files"])


def test_what_cannot_be_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"projected keeps what the projection makes .*train_conditioner=true changes"):
        config.load(
            Config, None, args_of(base, tmp_path, "data.image_features=projected", "model.train_conditioner=true")
        )
    with pytest.raises(ValueError, match=r"image_features=frames computes them on the fly: name the VLLM's folder"):
        config.load(Config, None, args_of(base, tmp_path, "data.image_features=frames"))
    more = ["data.image_features=projected", "optim.epochs=2"]
    train.main(args_of(base, tmp_path / "run", *more))
    with pytest.raises(ValueError, match=r"began with another projection of image features.*run\.seed and model\.init"):
        train.main(args_of(base, tmp_path / "run", *more, "run.seed=5", "optim.epochs=3"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10.0})())
    monkeypatch.setattr(cache, "SPARE", 100.0)
    with pytest.raises(ValueError, match=r"projected image features of 6 frames need about .* GB .*cache\.folder"):
        train.main(args_of(base, tmp_path / "small" / "run", *more, "cache.use=none"))


def here(args: list[str]) -> dict[str, float]:
    from unittest import mock

    from core import dist

    with mock.patch.object(dist, "shutdown"):
        return train.main(args)


@pytest.mark.dist
def test_two_processes_project_with_one_projection(two: Any, base: Path, tmp_path: Path) -> None:
    """Their own random ones differ; the cache and the training are those of one process."""
    found = {}
    for size in (1, 2):
        own = ["data.image_features=projected", f"loader.batch_size={2 // size}", f"model.vision={base / 'vlm'}"]
        own += ["optim.name=sgd", "optim.lr=0.02"]
        args = args_of(base, tmp_path / f"{size}" / "run", *own)
        found[size] = here(args) if size == 1 else two(here, args)[1]
    assert found[2] == pytest.approx(found[1], abs=1e-4)
    one, both = (Store(next((tmp_path / f"{size}" / "cache").glob("tokens-*"))) for size in (1, 2))
    assert one.folder.name == both.folder.name
    assert len(one) == len(both) == ROWS + 3
    for record in data.load(tiny.configured(base, tmp_path).data, "train"):
        torch.testing.assert_close(one[record.id], both[record.id], atol=1e-3, rtol=1e-3)
