"""Annotation files, samples and pixels; what is missing, malformed or damaged."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core import video
from core.data import Loader
from projects.lta_memvit import data, ego4d
from projects.lta_memvit.config import ClipConfig, DataConfig
from projects.lta_memvit.data import Benchmark
from tests.lta_memvit.tiny import configured

CLIP = ClipConfig(frames=8, rate=1, fps=8, crop=32, jitter=(32, 40))


def opened(root: Path, **changes: Any) -> Benchmark:
    cfg = {"annotations": root / "annotations", "clips": root / "clips", "inputs": 2, "future": 3} | changes
    return data.load(DataConfig(**cfg))


def edited(root: Path, target: Path, name: str, change: Any) -> Path:
    """A copy of the annotations in which one file is changed."""
    shutil.copytree(root / "annotations", target)
    content = json.loads((target / name).read_text())
    change(content)
    (target / name).write_text(json.dumps(content))
    return target


# --- annotations


def test_an_entry_becomes_an_action(made: Path) -> None:
    benchmark = opened(made)
    action = benchmark.actions("train")[3]
    assert action.id == "train-0000_3"
    assert (action.start_s, action.end_s, action.video_uid) == (3.0, 4.0, "video-train-0000")
    entry = json.loads((made / "annotations" / ego4d.FILES["train"]).read_text())["clips"][3]
    assert benchmark.taxonomy.verbs[action.verb] == entry["verb"]
    assert benchmark.taxonomy.nouns[action.noun] == entry["noun"]
    assert {action.verb for action in benchmark.actions("test")} == {ego4d.UNKNOWN}
    assert benchmark.labeled("val")
    assert not benchmark.labeled("test")


def test_a_dataset_is_described_by_its_classes_and_sizes(made: Path) -> None:
    text = opened(made).describe()
    for part in ("4 verbs, 5 nouns", "36 train windows (4 clips)", "27 val windows (3 clips)", "(2 clips)"):
        assert part in text
    assert "missing" not in text


@pytest.mark.parametrize(("classes", "version"), [((115, 478), "v1"), ((117, 521), "v2"), ((115, 521), "")])
def test_the_version_of_ego4d_is_told_by_its_classes(classes: tuple[int, int], version: str) -> None:
    taxonomy = ego4d.Taxonomy(*(tuple(map(str, range(count))) for count in classes))
    assert (f"(Ego4D {version})" in str(taxonomy)) == bool(version)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["clips"][4].pop("action_idx"), r"clips\[4\]: the key 'action_idx' is missing"),
        (lambda content: content["clips"][2].update(action_clip_start_sec="soon"), r"clips\[2\]: could not convert"),
        (lambda content: content["clips"].append(7), r"official schema"),
        (lambda content: content.pop("clips"), "expected an object with a list `clips`"),
        (lambda content: content["clips"][0].update(noun_label=9), "noun_label 9 has no name among 5"),
    ],
)
def test_a_malformed_annotation_file_is_named(made: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder = edited(made, tmp_path / "annotations", ego4d.FILES["train"], change)
    with pytest.raises(ValueError, match=message) as error:
        opened(made, annotations=folder)
    assert "fho_lta_train.json" in str(error.value)


def test_files_that_are_not_there_or_no_json(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fho_lta_taxonomy.json does not exist; link Ego4D's"):
        opened(made, annotations=tmp_path)
    shutil.copy(made / "annotations" / ego4d.TAXONOMY, tmp_path)
    with pytest.raises(ValueError, match=r"none of fho_lta_train\.json"):
        opened(made, annotations=tmp_path)
    (tmp_path / ego4d.FILES["val"]).write_text("{")
    with pytest.raises(ValueError, match=r"fho_lta_val.json is no JSON"):
        opened(made, annotations=tmp_path)
    shutil.copy(made / "annotations" / ego4d.FILES["val"], tmp_path)
    benchmark = opened(made, annotations=tmp_path)  # one part is enough
    with pytest.raises(ValueError, match=r"fho_lta_test_unannotated.json is not there, so there is no test part"):
        benchmark.actions("test")


def test_labels_may_be_absent_from_single_entries(made: Path, tmp_path: Path) -> None:
    folder = edited(made, tmp_path / "a", ego4d.FILES["val"], lambda c: c["clips"][0].pop("verb_label"))
    assert opened(made, annotations=folder).actions("val")[0].verb == ego4d.UNKNOWN


# --- clips that are missing or damaged


def test_windows_of_missing_clips_are_left_out_and_named(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "clips", tmp_path / "clips")
    (tmp_path / "clips" / "train-0001.mp4").unlink()
    benchmark = opened(made, clips=tmp_path / "clips")
    assert benchmark.missing("train") == ["train-0001"]
    assert "1 train clips are missing (train-0001)" in benchmark.describe()
    assert len(benchmark.windows("train")) == 36
    dataset = benchmark.forecasting("train", CLIP)
    assert len(dataset) == 27
    assert {clip for clip, _ in dataset.streams} == {"train-0000", "train-0002", "train-0003"}
    assert len(benchmark.recognition("train", CLIP)) == 39
    assert opened(made, clips=tmp_path / "nowhere").missing("val") == ["val-0000", "val-0001", "val-0002"]


def test_a_damaged_clip_is_left_out_by_the_loader(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "clips", tmp_path / "clips")
    (tmp_path / "clips" / "val-0001.mp4").write_bytes(b"not a video")
    cfg = configured(made, tmp_path / "run", f"data.clips={tmp_path / 'clips'}")
    dataset = data.load(cfg.data).dataset("val", cfg)
    loader = Loader(dataset, cfg.loader, train=False, transform=data.transform(cfg.clip))
    ids = [name for batch in loader for name in batch["id"]]
    assert len(ids) == 18
    assert list(loader.coverage().bad) == [str(tmp_path / "clips" / "val-0001.mp4")]


# --- samples


def test_a_forecasting_sample_is_as_promised(made: Path) -> None:
    benchmark = opened(made)
    dataset = benchmark.forecasting("train", CLIP)
    sample = dataset.sample(4, random.Random(0))
    actions = benchmark.clips("train")["train-0000"]
    assert sample["id"] == dataset.ids[4] == "train-0000_5"
    assert (sample["clip_uid"], sample["position"], sample["stream"]) == ("train-0000", 5, ("train-0000", 5))
    assert (sample["video"].shape, sample["video"].dtype) == ((2, 8, 48, 48, 3), torch.uint8)
    for key, chosen in (("verb", actions[6:9]), ("observed_verb", actions[4:6])):
        assert sample[key].tolist() == [action.verb for action in chosen]
        assert sample[key].dtype == torch.int64
    for key, chosen in (("noun", actions[6:9]), ("observed_noun", actions[4:6])):
        assert sample[key].tolist() == [action.noun for action in chosen]
    assert sample["clamped"] == 0


def test_the_frames_are_those_of_the_segments(made: Path) -> None:
    """A segment of a second at 8 frames a second, all of which are taken."""
    benchmark = opened(made)
    sample = benchmark.forecasting("val", CLIP).sample(2, random.Random(0))
    whole = video.read(made / "clips" / "val-0000.mp4", range(16, 32)).view(2, 8, 48, 48, 3)
    assert torch.equal(sample["video"], whole)
    segment = benchmark.recognition("val", CLIP).sample(2, random.Random(0))
    assert torch.equal(segment["video"], whole[0])
    assert (segment["id"], segment["stream"]) == ("val-0000_2", ("val-0000", 2))
    action = benchmark.actions("val")[2]
    assert (segment["verb"], segment["noun"]) == (action.verb, action.noun)


def test_each_frame_of_a_window_is_decoded_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    read = video.read

    def spy(path: Path, indices: Any, **options: Any) -> torch.Tensor:
        asked.append(list(indices))
        return read(path, indices, **options)

    monkeypatch.setattr(video, "read", spy)
    clip = ClipConfig(frames=16, rate=2, fps=8, crop=32, jitter=(32, 40))  # four seconds: inputs overlap
    sample = opened(made).forecasting("val", clip).sample(5, random.Random(0))
    assert len(asked) == 1  # one call for all inputs: the reader sorts, and decodes equal numbers once
    for row, numbers in zip(sample["video"].flatten(0, 1), asked[0], strict=True):
        assert torch.equal(row, read(made / "clips" / "val-0000.mp4", [numbers])[0])


def test_training_draws_the_seconds_of_each_input_and_testing_takes_the_middle(made: Path) -> None:
    clip = ClipConfig(frames=4, rate=1, fps=8, crop=32, jitter=(32, 40))  # half a second of each segment
    benchmark = opened(made)
    dataset = benchmark.forecasting("train", clip, train=True)
    drawn = [dataset.sample(0, random.Random(seed))["video"] for seed in range(6)]
    again = dataset.sample(0, random.Random(3))["video"]
    assert torch.equal(again, drawn[3])
    assert len({part.numpy().tobytes() for part in drawn}) > 2
    fixed = benchmark.forecasting("val", clip)
    assert torch.equal(fixed.sample(0, random.Random(0))["video"], fixed.sample(0, random.Random(1))["video"])
    loose = benchmark.forecasting("val", clip.model_copy(update={"val": "random"}))
    assert loose.jitter
    assert not benchmark.forecasting("test", clip.model_copy(update={"val": "random"})).jitter


def test_views_spread_over_a_segment(made: Path) -> None:
    clip = ClipConfig(frames=2, rate=1, fps=8, crop=32, jitter=(32, 40))
    sample = opened(made).recognition("val", clip, views=4).sample(1, random.Random(0))
    assert sample["video"].shape == (4, 2, 48, 48, 3)
    whole = video.read(made / "clips" / "val-0000.mp4", range(8, 16)).view(4, 2, 48, 48, 3)
    assert torch.equal(sample["video"], whole)


def test_segments_outside_of_their_clip_are_clamped_and_counted(made: Path, tmp_path: Path) -> None:
    def shift(content: dict[str, Any]) -> None:
        for entry in content["clips"][11:13]:
            entry["action_clip_start_sec"] += 100
            entry["action_clip_end_sec"] += 100

    folder = edited(made, tmp_path / "a", ego4d.FILES["val"], shift)
    benchmark = opened(made, annotations=folder, future=1)
    sample = benchmark.forecasting("val", CLIP).sample(10, random.Random(0))
    assert sample["clamped"] == 1
    assert torch.equal(sample["video"][1], video.read(made / "clips" / "val-0000.mp4", range(96, 104)))


def test_datasets_travel_to_worker_processes(made: Path) -> None:
    benchmark = opened(made)
    for dataset in (benchmark.forecasting("val", CLIP), benchmark.recognition("val", CLIP)):
        copy = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(copy.sample(1, random.Random(0))["video"], dataset.sample(1, random.Random(0))["video"])


# --- pixels


def test_all_inputs_of_a_window_are_scaled_cut_and_mirrored_alike(made: Path) -> None:
    sample = opened(made).forecasting("train", CLIP).sample(0, random.Random(0))
    twice = sample["video"][:1].expand(2, -1, -1, -1, -1).contiguous()
    change = data.transform(CLIP, train=True)
    outputs = [change({"video": twice[None]}, [random.Random(seed)])["video"] for seed in range(8)]
    assert outputs[0].shape == (1, 2, 3, 8, 32, 32)
    assert all(torch.equal(output[0, 0], output[0, 1]) for output in outputs)
    assert len({output.numpy().tobytes() for output in outputs}) > 4


@pytest.mark.parametrize(("flip", "mirrored"), [(0.0, 0), (1.0, 40), (0.5, None)])
def test_mirroring_is_a_matter_of_chance_unless_told_otherwise(flip: float, mirrored: int | None) -> None:
    clip = ClipConfig(frames=1, crop=32, jitter=(32, 32), flip=flip)
    ramp = torch.arange(32, dtype=torch.uint8).mul(7)[None, None, None, :, None].expand(1, 1, 32, 32, 3)
    change = data.transform(clip, train=True)
    outputs = [change({"video": ramp}, [random.Random(seed)])["video"] for seed in range(40)]
    count = sum(bool(output[0, 0, 0, 0, 0] > output[0, 0, 0, 0, -1]) for output in outputs)
    assert count == mirrored if mirrored is not None else 8 < count < 32


def test_clips_of_several_sizes_make_one_batch(made: Path, tmp_path: Path) -> None:
    """Upright and lying clips in one batch: each is scaled and cut by itself."""
    shutil.copytree(made / "clips", tmp_path / "clips")
    wide = np.random.default_rng(0).integers(0, 255, (104, 40, 64, 3), dtype=np.uint8)
    video.write(tmp_path / "clips" / "val-0001.mp4", iter(torch.from_numpy(wide)), 8)
    cfg = configured(made, tmp_path / "run", f"data.clips={tmp_path / 'clips'}", "loader.batch_size=30")
    loader = Loader(
        data.load(cfg.data).dataset("val", cfg), cfg.loader, train=False, transform=data.transform(cfg.clip)
    )
    (batch,) = list(loader)
    assert batch["video"].shape == (27, 2, 3, 8, 32, 32)
    assert batch["verb"].shape == (27, 3)


def test_an_example_has_the_shape_of_a_batch(made: Path, tmp_path: Path) -> None:
    assert data.example(configured(made, tmp_path)).shape == (1, 2, 3, 8, 32, 32)
    assert data.example(configured(made, tmp_path, "task=recognition")).shape == (1, 3, 8, 32, 32)
