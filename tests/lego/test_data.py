"""The released layout and its traps: features, flips, broken files, missing files, two datasets at once."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.data import SampleError
from projects.lego import data
from projects.lego.config import DataConfig, ModelConfig
from projects.lego.data import Pairs
from tests.lego import tiny
from tests.lego.tiny import configured

MODEL = ModelConfig(feature_width=16)


@pytest.fixture
def root(home: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may change."""
    shutil.copytree(home / "data", tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((5, 16), 5), ((100, 16), 77), ((77, 16), 77), ((16,), 1), ((5, 3, 16), 5), ((90, 41, 16), 77)],
    ids=str,
)
def test_text_features_are_cut_or_followed_by_zeros(tmp_path: Path, shape: tuple[int, ...], rows: int) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    np.save(tmp_path / "f.npy", values)
    found = data.read_features(tmp_path / "f.npy", "text")
    assert found.shape == (77, 16)
    last = values[:, -1] if values.ndim == 3 else values.reshape(-1, 16)
    np.testing.assert_array_equal(found[:rows].numpy(), last[:rows])
    assert not found[rows:].any()


def test_features_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    for make, reason in [
        (lambda: None, "no such file"),
        (lambda: path.write_bytes(b"PK"), "no readable array"),
        (lambda: np.save(path, np.zeros((2, 3, 4, 5), np.float16)), r"float16 \(2, 3, 4, 5\)"),
        (lambda: np.save(path, np.zeros((4, 5), np.int64)), "int64"),
        (lambda: np.save(path, np.array([{}], dtype=object), allow_pickle=True), "no readable array"),
    ]:
        make()
        with pytest.raises(SampleError, match=reason) as error:
            data.read_features(path, "image")
        assert error.value.path == str(path)


def test_the_suffix_alone_is_replaced(home: Path) -> None:
    """The reference replaces every "jpg" in the path."""
    (record, *_) = data.load(configured(home, home / "x").data, "val")
    odd = data.Record("ego4d", "val", "c", "a", "jpg_clip/0/my.jpg.jpg", "t", record.fields)
    assert data.feature_path(Path("r"), odd, "text", "v") == Path(
        "r/ego4d/vllm_text_feature/v/val/jpg_clip/0/my.jpg.npy"
    )


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pictures_of_any_kind_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.png" if mode != "CMYK" else "x.jpg")
    Image.new("RGB", (6, 4), (200, 10, 10)).convert(mode).save(path)
    assert data.read_image(path).mode == "RGB"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(SampleError, match="no readable picture"):
        data.read_image(path)


def test_the_json_may_lie_inside_egogen_and_the_root_may_be_it(root: Path) -> None:
    before = data.load(DataConfig(root=root), "train")
    for path in root.glob("*.json"):
        path.rename(root / "EgoGen" / path.name)
    inside = data.load(DataConfig(root=root), "train")
    assert inside == before
    assert data.load(DataConfig(root=root / "EgoGen"), "train") == before
    assert data.source_path(root / "EgoGen", before[0]) == data.source_path(root, before[0])
    assert data.source_path(root, before[0]).is_file()


def test_the_metric_copy_is_preferred_where_there_is_one(root: Path) -> None:
    (record, *_) = data.load(DataConfig(root=root), "val")
    assert data.target_path(root, record, metric=True) == data.target_path(root, record)
    copy = root / "EgoGen/ego4d.fho/val_gt_for_metric" / record.target
    copy.parent.mkdir(parents=True)
    copy.touch()
    assert data.target_path(root, record, metric=True) == copy
    assert data.target_path(root, record) != copy


def test_two_datasets_are_concatenated_in_order(root: Path) -> None:
    tiny.write_dataset(root, dataset="epickitchen", train=2, val=1)
    both = data.load(DataConfig(root=root, datasets=("ego4d", "epickitchen")), "train")
    assert [record.dataset for record in both] == ["ego4d"] * 6 + ["epickitchen"] * 2
    assert len({record.id for record in both}) == 8
    cfg = DataConfig(root=root, datasets=("ego4d", "epickitchen"), limit=1)
    assert len(data.load(cfg, "train")) == 2
    pairs = Pairs(both, cfg, MODEL)
    assert pairs.sample(7, random.Random(0))["text_features"].shape == (77, 16)


def test_every_missing_file_is_listed(root: Path) -> None:
    cfg = DataConfig(root=root)
    records = data.load(cfg, "train")
    assert data.missing(cfg, records, ("image", "text")) == []
    lost = [data.target_path(root, records[2]), data.feature_path(root, records[1], "text")]
    for path in lost:
        path.unlink()
    assert set(data.missing(cfg, records, ("image", "text"))) == set(lost)
    assert data.missing(cfg, records) == lost[:1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "damaged or no JSON"),
        ("[]", "expected {clip"),
        ('{"c": []}', "clip c should hold"),
        ('{"c": {"0": {"image_0": "x"}}}', "needs image_0 and image_1"),
    ],
)
def test_a_damaged_json_is_named(root: Path, content: str, words: str) -> None:
    path = root / "ego4d_train.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"ego4d_train\.json.*{words}"):
        data.load(DataConfig(root=root), "train")
    path.unlink()
    with pytest.raises(ValueError, match="no such file; unpack the released dataset"):
        data.load(DataConfig(root=root), "train")


def test_a_prompt_that_is_not_there_is_named_with_those_that_are(root: Path) -> None:
    (record, *_) = data.load(DataConfig(root=root), "val")
    with pytest.raises(ValueError, match=r"no text 'llava', it has image_0, .*llava_forecast_finetune"):
        record.prompt("llava")


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("The left hand and the right knob", "The right hand and the left knob"),
        ("leftmost cup, lefthand side", "rightmost cup, righthand side"),
        ("Left. RIGHT!", "Right. LEFT!"),
        ("the leftover bright copyright", "the leftover bright copyright"),
    ],
)
def test_sides_are_swapped_in_words(text: str, mirrored: str) -> None:
    assert data.swap_sides(text) == mirrored


@given(st.text())
def test_swapping_sides_twice_is_nothing(text: str) -> None:
    assert data.swap_sides(data.swap_sides(text)) == text


def test_a_mirrored_pair_keeps_words_and_features_unless_told_otherwise(root: Path) -> None:
    path = root / "ego4d_train.json"
    content = json.loads(path.read_text())
    for actions in content.values():
        for entry in actions.values():
            entry["llava_forecast_finetune"] = "with the left hand"
    path.write_text(json.dumps(content))
    records = data.load(DataConfig(root=root), "train")
    samples = {
        name: Pairs(records, DataConfig(root=root, **options), MODEL, train=True).sample(0, random.Random(0))
        for name, options in {
            "plain": {"flip": 0.0},
            "reference": {"flip": 1.0},
            "right": {"flip": 1.0, "flip_words": True, "flip_features": True},
        }.items()
    }
    plain, reference, right = (samples[name] for name in ("plain", "reference", "right"))
    assert torch.equal(reference["source"], plain["source"].flip(1))
    assert (reference["prompt"], right["prompt"]) == ("with the left hand", "with the right hand")
    assert torch.equal(reference["image_features"], plain["image_features"])
    grid = plain["image_features"].view(2, 2, 16)
    assert torch.equal(right["image_features"].view(2, 2, 16), grid.flip(1))
    pairs = Pairs(records, DataConfig(root=root, flip_words=True), MODEL, train=True)
    assert pairs.prompts() == ["", "with the left hand", "with the right hand"]
    assert Pairs(records, DataConfig(root=root, flip_words=True), MODEL).prompts() == ["", "with the left hand"]
    with pytest.raises(ValueError, match="no square grid"):
        data.mirror_grid(torch.zeros(5, 2))


def test_half_of_the_pairs_are_mirrored_and_none_in_validation(root: Path) -> None:
    records = data.load(DataConfig(root=root), "train")
    plain = Pairs(records, DataConfig(root=root), MODEL)
    train = Pairs(records, DataConfig(root=root), MODEL, train=True)
    flips = 0
    for seed in range(60):
        sample = train.sample(seed % 6, random.Random(seed))
        flips += not torch.equal(sample["source"], plain.sample(seed % 6, random.Random(seed))["source"])
    assert 18 <= flips <= 42
