"""Descriptions and features of a split through the real command: layout, resuming, sharding, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from core import config
from projects.lego import data, extract
from projects.lego.config import Config, DataConfig
from projects.lego.extract import Describer
from projects.lego.model import vlm_files
from projects.lego.model.vlm import Vlm
from projects.lego.prompts import question
from tests.lego.test_vlm import TEXT, VISION
from tests.support import GOLDEN

WIDTH, PATCHES = 64, 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five actions of two clips, and a language model of this size."""
    entries: dict[str, dict] = {}
    for k in range(5):
        clip, action = f"clip{k // 3}", str(k)
        for frame in ("jpg0001.jpg", "jpg0002.jpg"):
            path = tmp_path / "EgoGen" / "ego4d.fho" / "val" / clip / action / frame
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(k).integers(0, 256, (30, 40, 3), np.uint8)
            Image.fromarray(noise).save(path)
        images = {"image_0": f"{clip}/{action}/jpg0001.jpg", "image_1": f"{clip}/{action}/jpg0002.jpg"}
        entries.setdefault(clip, {})[action] = {**images, "action": f"#C C opens drawer {k}"}
    (tmp_path / "ego4d_val.json").write_text(json.dumps(entries))
    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "lego" / "llava_labels")
    vlm_files.save_vlm(Vlm(VISION, TEXT | {"vocab_size": 520}), tokenizer, tmp_path / "vlm")
    return tmp_path


def run(root: Path, *more: str) -> dict[str, int]:
    return extract.main([
        f"run.out={root / 'run'}", "run.device=cpu", f"data.root={root}", f"extract.vlm={root / 'vlm'}",
        "extract.longest=6", "extract.batch_size=2", "loader.workers=0", "extract.temperature=1.0", *more,
    ])  # fmt: skip


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted((root / "ego4d").rglob("*.npy"))}


def test_the_released_layout(root: Path) -> None:
    assert run(root, "extract.prompt=ours") == {"described": 5, "actions": 5}
    records = data.load(DataConfig(root=root), "val")
    describer = Describer(root / "vlm", torch.device("cpu"))
    for record in records:
        image = np.load(data.feature_path(root, record, "image"))
        text = np.load(data.feature_path(root, record, "text"))
        assert image.shape == (PATCHES, WIDTH)
        assert image.dtype == text.dtype == np.float16
        assert text.ndim == 2
        assert text.shape[1] == WIDTH
        pixels = extract.clip_pixels(data.read_image(data.source_path(root, record)), 28)[None]
        assert np.allclose(describer.see(pixels)[0], image, atol=2e-3)
    folder = root / "ego4d" / "descriptions" / data.RELEASED["ego4d"].vllm / "val"
    merged = json.loads((folder / "vlm.json").read_text())
    assert list(merged) == ["clip0", "clip1"]
    entry = merged["clip1"]["4"]
    assert set(entry) == {"original action", "action", "description"}
    assert entry["action"] == "open drawer 4"
    attached = json.loads((root / "ego4d_val.json").read_text())
    assert attached["clip1"]["4"]["ours"] == entry["description"]
    assert attached["clip1"]["4"]["action"] == "#C C opens drawer 4"
    # The diffusion stage reads all of it.
    cfg = config.load(Config, overrides=[f"data.root={root}", "data.prompt=ours", "model.feature_width=64"])
    sample = data.Pairs(data.load(cfg.data, "val"), cfg.data, cfg.model).sample(0, None)
    assert sample["image_features"].shape == (PATCHES, WIDTH)
    assert sample["text_features"].shape == (77, WIDTH)
    assert sample["prompt"] == attached["clip0"]["0"]["ours"]


def test_batches_and_restarts_change_nothing(root: Path) -> None:
    run(root)
    whole = files(root)
    assert len(whole) == 10
    assert run(root) == {"described": 0, "actions": 5}
    for name in list(whole)[:3]:
        (root / name).unlink()
    notes = next((root / "ego4d").rglob("lines-0.jsonl"))
    notes.write_text(notes.read_text()[:-20])  # a crash in the middle of a line
    assert 1 <= run(root, "extract.batch_size=5")["described"] <= 4
    again = files(root)
    assert again.keys() == whole.keys()
    for name, content in whole.items():
        a, b = (np.load(extract.io.BytesIO(value)).astype(np.float32) for value in (content, again[name]))
        assert a.shape == b.shape
        assert np.allclose(a, b, atol=2e-3), name


def here(root: str) -> int:
    return run(Path(root))["actions"]


@pytest.mark.dist
def test_processes_share_the_work(two, root: Path) -> None:
    assert two(here, str(root)) == [5, 5]
    assert len(files(root)) == 10
    assert len(list((root / "ego4d").rglob("lines-*.jsonl"))) == 2
    merged = json.loads(next((root / "ego4d").rglob("vlm.json")).read_text())
    assert sorted(action for clip in merged.values() for action in clip) == list("01234")


def test_features_of_another_model_are_refused(root: Path) -> None:
    run(root)
    before = files(root)
    torch.manual_seed(4)
    tokenizer = AutoTokenizer.from_pretrained(root / "vlm")
    vlm_files.save_vlm(Vlm(VISION, TEXT | {"vocab_size": 520}), tokenizer, root / "vlm")
    with pytest.raises(ValueError, match=r"made\.json: the features there were made with another model; .*data\.vllm="):
        run(root)
    assert files(root) == before
    assert run(root, "data.vllm=other") == {"described": 5, "actions": 5}
    assert len(files(root)) == 20


def test_released_features_are_never_overwritten(root: Path) -> None:
    (record, *_) = data.load(DataConfig(root=root), "val")
    path = data.feature_path(root, record, "text")
    path.parent.mkdir(parents=True)
    np.save(path, np.ones((3, WIDTH), np.float16))
    with pytest.raises(ValueError, match=r"features of unknown origin, perhaps the released ones"):
        run(root)
    assert np.load(path).tolist() == np.ones((3, WIDTH)).tolist()


def test_less_can_be_stored(root: Path) -> None:
    run(root, "extract.image=patches", "extract.text=false")
    (record, *_) = data.load(DataConfig(root=root), "val")
    assert np.load(data.feature_path(root, record, "image")).shape == (PATCHES, 32)
    assert not data.feature_path(root, record, "text").exists()
    run(root, "extract.image=none", "extract.text=false", "data.vllm=none")
    assert len(files(root)) == 5


def test_too_small_a_disk_is_said_before_anything_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10.0})())
    monkeypatch.setattr(extract, "SPARE", 100.0)
    with pytest.raises(ValueError, match=r"need about .* GB .*extract\.image=none"):
        run(root)
    assert files(root) == {}


def test_texts_of_others_are_not_overwritten(root: Path) -> None:
    with pytest.raises(ValueError, match="has another text under 'action'"):
        run(root, "extract.prompt=action")
    run(root, "extract.prompt=mine")
    path = root / "ego4d_val.json"
    tree = json.loads(path.read_text())
    tree["clip0"]["0"]["mine"] = "something else"
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"clip0/0 has another text under 'mine'.*extract\.replace=true"):
        run(root, "extract.prompt=mine")
    run(root, "extract.prompt=mine", "extract.replace=true")
    assert json.loads(path.read_text())["clip0"]["0"]["mine"] != "something else"


def test_a_frame_and_an_action_are_described(root: Path) -> None:
    describer = Describer(root / "vlm", torch.device("cpu"), cfg=extract.ExtractConfig(longest=5, temperature=0.0))
    image = Image.fromarray(np.full((40, 60, 3), 90, np.uint8))
    (one,) = describer.describe([image], ["#C C opens the drawer"], "ego4d")
    both = describer.describe([image, image], ["#C C opens the drawer", "#C C cuts"], "ego4d")
    assert both[0].description == one.description
    assert one.text_features.shape[1] == WIDTH
    assert torch.allclose(both[0].image_features, both[1].image_features, atol=1e-5)
    assert question("#C C cuts", "ego4d") == "How does the person properly cut that is displayed in the video frame?"
