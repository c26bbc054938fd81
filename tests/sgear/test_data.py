"""Samples of every source: the same frames from video, JPEG folder and tar; the protocol on real files; the layout."""

from __future__ import annotations

import io
import pickle
import random
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from core import config, video
from core.data import Loader, LoaderConfig, SampleError
from projects.sgear import clips, data, demo, features, frames, layout
from projects.sgear.config import Config, DataConfig
from projects.sgear.data import Anticipation, Benchmark


def settings(root: Path, **options: Any) -> DataConfig:
    return DataConfig(**{"root": root, "frames": 4, "rate": 2.0, "tau_a": 0.5, "tau_o": 2.0, **options})


def opened(root: Path, **options: Any) -> Benchmark:
    return data.load(settings(root, **options))


def rng() -> random.Random:
    return random.Random(0)


# --- samples


def test_a_sample_of_video_and_of_features(kitchen: Path) -> None:
    from_video, from_features = opened(kitchen).dataset("val"), opened(kitchen, source="features").dataset("val")
    assert len(from_video) == len(from_features) == 144
    for index in (0, 5, 143):
        a, b = from_video.sample(index, rng()), from_features.sample(index, rng())
        assert a["video"].shape == (4, demo.SIZE, demo.SIZE, 3)
        assert a["video"].dtype == torch.uint8
        assert b["features"].shape == (4, demo.CHANNELS)
        number = int(a["id"].split("_")[2])
        video_id = a["id"].rpartition("_")[0]
        assert a["label"] == b["label"] == demo.script(video_id)[number].label
        assert (a["verb"], a["noun"]) == demo.PAIRS[a["label"]]
        assert {key: a[key] for key in ("id", "index", "verb")} == {key: b[key] for key in ("id", "index", "verb")}
        assert a["past_label"].shape == (4,)


def test_past_labels_are_the_actions_on_screen(kitchen: Path) -> None:
    dataset = opened(kitchen, source="features").dataset("val")
    for index in range(0, 144, 7):
        sample = dataset.sample(index, rng())
        actions = demo.script(sample["id"].rpartition("_")[0])
        where = clips.span(
            dataset.clips.start_s[index], dataset.clips.end_s[index], clips.FEATURE_FPS, dataset.rule, rng()
        )
        times = clips.feature_frames(where, dataset.rule).times_s.tolist()
        wanted = [next((a.label for a in actions if a.start_s <= t <= a.end_s), -1) for t in times]
        assert sample["past_label"].tolist() == wanted
        assert (
            sample["label"] not in [label for label, t in zip(wanted, times, strict=True) if t > actions[0].end_s][-1:]
        )


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kitchen with one video whose frames show their numbers, as video, JPEG folder and tar."""
    root = tmp_path_factory.mktemp("counted")
    shutil.copytree(_annotations(root), root / "kitchen" / "external", dirs_exist_ok=True)
    folder = root / "kitchen/DATA/videos/EpicKitchens100/videos_extension_ht256px/P01"
    folder.mkdir(parents=True)
    pixels = counting(400)
    video.write(folder / "P01_101.MP4", pixels, 25.0)
    pictures = root / "jpeg/P01/rgb_frames/P01_101"
    pictures.mkdir(parents=True)
    (root / "tars/P01/rgb_frames").mkdir(parents=True)
    with tarfile.open(root / "tars/P01/rgb_frames/P01_101.tar", "w") as archive:
        for k in range(400):
            buffer = io.BytesIO()
            Image.fromarray(pixels[k].numpy()).save(buffer, "JPEG", quality=95)
            (pictures / f"frame_{k + 1:010d}.jpg").write_bytes(buffer.getvalue())
            member = tarfile.TarInfo(f"./frame_{k + 1:010d}.jpg")
            member.size = len(buffer.getvalue())
            archive.addfile(member, io.BytesIO(buffer.getvalue()))
    return root


def _annotations(root: Path) -> Path:
    """20 actions of one video, every 0.6 s; half of the starts lie exactly on a frame."""
    folder = root / "external"
    official, tables = folder / "epic-kitchens-100-annotations", folder / "rulstm/RULSTM/data/ek100"
    official.mkdir(parents=True)
    tables.mkdir(parents=True)
    (official / "EPIC_100_verb_classes.csv").write_text("id,key\n0,take\n")
    (official / "EPIC_100_noun_classes.csv").write_text("id,key\n0,tap\n1,cup\n")
    (tables / "actions.csv").write_text("id,verb,noun,action\n0,0,0,take tap\n1,0,1,take cup\n")
    header = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
    lines = []
    for k in range(20):
        start = 2.02 + 0.6 * k + (0.013 if k % 2 else 0.0)
        lines.append(f"P01_101_{k},P01,P01_101,00:00:{start:06.3f},00:00:{start + 0.5:06.3f},0,{k % 2}\n")
    (official / "EPIC_100_validation.csv").write_text(header + "".join(lines))
    (official / "EPIC_100_train.csv").write_text(header + "".join(lines))
    return folder


def counting(count: int) -> torch.Tensor:
    """Frames (T,48,48,3) that show their number: nine squares, one for each binary digit, which no codec confuses."""
    digits = (torch.arange(count)[:, None] >> torch.arange(9)) & 1
    squares = (30 + 190 * digits).to(torch.uint8).view(count, 3, 3)
    return squares.repeat_interleave(16, 1).repeat_interleave(16, 2)[..., None].expand(-1, -1, -1, 3).contiguous()


def shown(sample: dict[str, Any]) -> list[int]:
    """The numbers of a sample's frames, read off its pixels."""
    squares = sample["video"].float().mean(-1).view(-1, 3, 16, 3, 16).mean((2, 4)).flatten(1) > 125
    return (squares.long() << torch.arange(9)).sum(1).tolist()


@pytest.mark.parametrize("strategy", ["last_clip", "center_clip", "first_clip"])
@pytest.mark.parametrize("source", ["video", "frames", "tars"])
def test_no_decoded_frame_is_at_or_after_the_limit(counted: Path, source: str, strategy: str) -> None:
    """The protocol on files: what the pixels show is before action start - tau_a, for every reader of frames."""
    options: dict[str, Any] = {"strategy": strategy, "rate": 5.0}
    if source != "video":
        roots = (counted / ("jpeg" if source == "frames" else "tars"),)
        options |= {"source": "frames", "videos": roots, "fps": 25.0}
    dataset = opened(counted / "kitchen", **options).dataset("val")
    for index in range(len(dataset)):
        sample = dataset.sample(index, rng())
        limit_s = dataset.clips.segments.start_s[index] - 0.5
        latest = max(shown(sample))
        assert latest / 25.0 < limit_s - 1e-6
        assert sample["margin_s"] == pytest.approx(limit_s - latest / 25.0, abs=1e-9)
        if strategy == "last_clip":
            assert latest + 1 >= (limit_s - 1e-6) * 25.0, "and it is the last one before it"


def test_pictures_and_tars_choose_as_video_does(counted: Path) -> None:
    kinds = {
        "video": opened(counted / "kitchen"),
        "jpeg": opened(counted / "kitchen", source="frames", videos=(counted / "jpeg",), fps=25.0),
        "tars": opened(counted / "kitchen", source="frames", videos=(counted / "tars",), fps=25.0),
    }
    found = {name: [shown(b.dataset("val").sample(k, rng())) for k in range(20)] for name, b in kinds.items()}
    assert found["video"] == found["jpeg"] == found["tars"]


def test_the_published_code_takes_the_frame_at_the_limit(counted: Path) -> None:
    strict, compat = (opened(counted / "kitchen", compat=flag).dataset("val") for flag in (False, True))
    nearer = [k for k in range(20) if shown(compat.sample(k, rng()))[-1] == shown(strict.sample(k, rng()))[-1] + 1]
    assert nearer
    assert all(compat.sample(k, rng())["margin_s"] == pytest.approx(0, abs=1e-9) for k in nearer)


def test_a_container_that_starts_late_counts_from_its_own_clock(counted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = counted / "kitchen/DATA/videos/EpicKitchens100/videos_extension_ht256px/P01/P01_101.MP4"
    plain = frames.clock(path).times_s
    frames._clock.cache_clear()
    probe = video.probe

    def late(where: Path) -> Any:
        from dataclasses import replace

        return replace(probe(where), start_s=0.4)

    monkeypatch.setattr(frames.video, "probe", late)
    np.testing.assert_allclose(frames.clock(path).times_s, plain + 0.4)
    frames._clock.cache_clear()


def test_frame_rates_of_pictures_come_from_the_official_list(counted: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(counted / "kitchen/external", root / "external")
    info = root / "external/epic-kitchens-100-annotations/EPIC_100_video_info.csv"
    dataset = opened(root, source="frames", videos=(counted / "jpeg",)).dataset("val")
    with pytest.raises(SampleError, match=r"no frame rate; set data.fps"):
        dataset.sample(0, rng())
    info.write_text("video_id,duration,fps,resolution\nP01_101,16,25.0,64x64\n")
    dataset = opened(root, source="frames", videos=(counted / "jpeg",)).dataset("val")
    same = opened(counted / "kitchen").dataset("val")
    assert shown(dataset.sample(3, rng())) == shown(same.sample(3, rng()))


def test_only_wanted_frames_are_decoded_and_once(kitchen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    read = video.read
    monkeypatch.setattr(frames.video, "read", lambda path, numbers: asked.append(list(numbers)) or read(path, numbers))
    dataset = opened(kitchen).dataset("val")
    dataset.sample(3, rng())
    assert len(asked) == 1
    assert len(asked[0]) == 4


# --- what is not there


def test_a_missing_video_stops_before_training_or_is_left_out(counted: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(counted / "kitchen", root)
    path = root / "external/epic-kitchens-100-annotations/EPIC_100_validation.csv"
    path.write_text(path.read_text() + "P02_1_0,P02,P02_1,00:00:05.0,00:00:06.0,0,0\n")
    with pytest.raises(ValueError, match=r"1 videos are missing. P02/P02_1.MP4: is in none of .*data.missing=skip"):
        opened(root).dataset("val")
    dataset = opened(root, missing="skip").dataset("val")
    assert len(dataset) == 20
    assert "P02_1_0" not in dataset.ids
    shutil.rmtree(root / "DATA")
    with pytest.raises(ValueError, match="2 videos are missing"):
        opened(root, missing="skip").dataset("val")


def test_an_action_after_the_end_of_its_video_is_a_bad_sample(counted: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(counted / "kitchen", root)
    path = root / "external/epic-kitchens-100-annotations/EPIC_100_validation.csv"
    path.write_text(path.read_text() + "late,P01,P01_101,00:01:05.0,00:01:06.0,0,0\n")
    with pytest.raises(SampleError, match=r"no frame lies .* \(sample late\); the video has frames until 15.960 s"):
        opened(root).dataset("val").sample(20, rng())
    black = opened(root, compat=True).dataset("val").sample(20, rng())
    assert black["video"].shape == (4, 100, 100, 3)
    assert int(black["video"].max()) == 0


def test_roots_are_searched_in_order(tmp_path: Path) -> None:
    for root in ("a", "b"):
        (tmp_path / root / "P01").mkdir(parents=True)
    (tmp_path / "b/P01/P01_01.MP4").touch()
    roots = [tmp_path / "a", tmp_path / "b"]
    assert frames.find(roots, "P01/P01_01.MP4", "video") == tmp_path / "b/P01/P01_01.MP4"
    (tmp_path / "a/P01/P01_01.MP4").touch()
    assert frames.find(roots, "P01/P01_01.MP4", "video") == tmp_path / "a/P01/P01_01.MP4"
    (tmp_path / "b/P01/P01_03.mp4").touch()
    assert frames.find(roots, "P01/P01_03.MP4", "video") == tmp_path / "b/P01/P01_03.mp4", "scaled videos are .mp4"
    with pytest.raises(SampleError, match=f"is in none of {tmp_path / 'a'}, {tmp_path / 'b'}"):
        frames.find(roots, "P01/P01_02.MP4", "video")


def test_a_damaged_tar_and_a_gap_are_named(counted: Path, tmp_path: Path) -> None:
    broken = tmp_path / "P01_101.tar"
    broken.write_bytes(b"nothing")
    with pytest.raises(SampleError, match="cannot be read as an uncompressed tar"):
        frames.TarFrames(broken)
    tar = frames.TarFrames(counted / "tars/P01/rgb_frames/P01_101.tar")
    assert len(tar) == 400
    del tar.places[7]
    with pytest.raises(SampleError, match="frame 7 is missing"):
        tar.read([6, 7])


# --- parts, epochs, order


def test_parts_and_classes(kitchen: Path) -> None:
    found = opened(kitchen)
    assert found.parts() == ("train", "val", "test")
    assert (len(found.actions), found.verbs, found.nouns) == (20, demo.VERBS, demo.NOUNS)
    assert [found.verb_of.tolist(), found.noun_of.tolist()] == [
        list(column) for column in zip(*demo.PAIRS, strict=True)
    ]
    assert int(found.counts("train").sum()) == 432
    assert (found.segments("test").action == -1).all()
    assert len(opened(kitchen, train="train+val").segments("train")) == 576
    assert set(found.segments("val").id) <= set(opened(kitchen, train="train+val").segments("train").id)
    some = opened(kitchen, persons=(2, 3)).segments("train")
    assert {path.split("/")[0] for path in some.path} == {"P02", "P03"}
    with pytest.raises(ValueError, match="ek100 has no part test_seen; it has train, val, test"):
        found.segments("test_seen")
    assert "20 actions, 4 verbs, 6 nouns; train 432 (0 dropped), val 144" in found.describe()
    assert found.primary == "action/recall5"


def test_an_epoch_may_be_longer_or_shorter(kitchen: Path) -> None:
    for repeat, length in ((2.5, 1080), (0.25, 108)):
        dataset = opened(kitchen, source="features", repeat=repeat).dataset("train", train=True)
        assert len(dataset) == length
        seen = {dataset.sample(k, random.Random(k))["index"] for k in range(length)}
        assert seen == set(range(432)) if repeat > 1 else len(seen) > 80
    assert len(opened(kitchen, repeat=3.0).dataset("val")) == 144


def test_balanced_training_draws_classes_alike(kitchen: Path) -> None:
    dataset = opened(kitchen, source="features", balanced=True).dataset("train", train=True)
    rows = [dataset._row(0, random.Random(k)) for k in range(4000)]
    drawn = Counter(dataset.clips.segments.action[rows].tolist())
    assert len(drawn) == 20
    assert max(drawn.values()) / min(drawn.values()) < 1.6


def test_evaluation_ignores_what_is_random(kitchen: Path) -> None:
    options = {"source": "features", "strategy": "random_clip", "dynamic": True, "frames": 2}
    still = opened(kitchen, **options).dataset("val")
    assert still.rule == clips.Rule(2, 2.0, "center_clip", False, False)
    moving = opened(kitchen, **options).dataset("train", train=True)
    assert moving.rule == clips.Rule(2, 2.0, "random_clip", True, False)
    draws = {tuple(moving.sample(9, random.Random(k))["features"][:, 0].tolist()) for k in range(20)}
    assert len(draws) > 3
    assert len({tuple(still.sample(9, random.Random(k))["features"][:, 0].tolist()) for k in range(5)}) == 1


def test_batches_are_the_same_for_any_number_of_workers(kitchen: Path) -> None:
    def batches(workers: int) -> list[Any]:
        dataset = opened(kitchen, source="features", strategy="random_clip").dataset("train", train=True)
        loader = Loader(dataset, LoaderConfig(batch_size=16, workers=workers, seed=3), train=True)
        return [
            (batch["id"], batch["features"], batch["past_label"]) for batch, _ in zip(loader, range(3), strict=False)
        ]

    for (ids, vectors, past), (other_ids, other, other_past) in zip(batches(0), batches(2), strict=True):
        assert ids == other_ids
        assert torch.equal(vectors, other)
        assert torch.equal(past, other_past)


def test_a_dataset_can_be_sent_to_a_worker(kitchen: Path) -> None:
    dataset = opened(kitchen, source="features").dataset("val")
    copy: Anticipation = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.sample(1, rng())["features"], dataset.sample(1, rng())["features"])


# --- the layout


@pytest.mark.parametrize("root", ["here", "here/DATA"])
def test_the_published_layout(root: str) -> None:
    places = layout.resolve(DataConfig(root=Path(root), features=("rgb", "my/db")))
    assert places.annotations == Path("here/external/epic-kitchens-100-annotations")
    assert places.rulstm == Path("here/external/rulstm/RULSTM/data/ek100")
    assert [path.as_posix() for path in places.videos] == [
        "here/DATA/videos/EpicKitchens/videos_ht256px/train",
        "here/DATA/videos/EpicKitchens/videos_ht256px/test",
        "here/DATA/videos/EpicKitchens100/videos_extension_ht256px",
    ]
    assert [path.as_posix() for path in places.features] == [
        "here/DATA/external/rulstm/RULSTM/ek100_data_full/rgb", "my/db",
    ]  # fmt: skip


def test_ircsn_features_lie_in_either_place(tmp_path: Path) -> None:
    cfg = DataConfig(root=tmp_path, features=("igm",))
    assert layout.resolve(cfg).features == (tmp_path / "DATA/extracted_features/ek100/igm",)
    beside = tmp_path / "DATA/external/rulstm/RULSTM/ek100_data_full/igm"
    beside.mkdir(parents=True)
    assert layout.resolve(cfg).features == (beside,)


def test_features_of_egtea_are_by_split() -> None:
    cfg = DataConfig(dataset="egtea", fold=2, features=("flow",), root=Path("x"))
    name = "TSN-C_3_egtea_action_CE_s2_flow_model_best_fcfull_hd"
    assert layout.resolve(cfg).features == (Path(f"x/DATA/external/rulstm/RULSTM/egtea/{name}"),)


def test_pixels_and_features_reach_the_model_as_it_takes_them(kitchen: Path) -> None:
    frame = ["model.vit.image=32", "pixels.train_short_side=[32,36]", "pixels.short_side=34", "data.frames=4"]
    cfg = config.load(Config, None, [f"data.root={kitchen}", *frame])
    dataset = opened(kitchen).dataset("val")
    clip = dataset.sample(0, rng())["video"]
    assert data.transform(cfg, train=True)({"video": clip[None]}, [rng()])["video"].shape == (1, 3, 4, 32, 32)
    shapes = {
        (crops, flips): data.transform(cfg, crops=crops, flips=flips)({"video": clip[None]}, [rng()])["video"].shape
        for crops in (1, 3)
        for flips in (False, True)
    }
    assert shapes[1, False] == (1, 3, 4, 32, 32)
    assert shapes[1, True] == (1, 2, 3, 4, 32, 32)
    assert shapes[3, False] == (1, 3, 3, 4, 32, 32)
    assert shapes[3, True] == (1, 6, 3, 4, 32, 32)
    assert data.example(cfg).shape == (1, 3, 4, 32, 32)
    words = ["data.source=features", "model.input=features", "model.feature_dim=7"]
    cfg = config.load(Config, None, [*frame, *words])
    assert data.transform(cfg, train=True) is None
    assert data.example(cfg).shape == (1, 4, 7)


# --- 50 Salads, from files to samples


def test_salads_end_to_end(tmp_path: Path) -> None:
    base = tmp_path / "external/breakfast_50salad_anticipation_annotations"
    splits, labels = base / "cvpr18_data/50s_splits", base / "annotations/50salads"
    (labels / "groundTruth").mkdir(parents=True)
    splits.mkdir(parents=True)
    (labels / "mapping.txt").write_text("0 cut_tomato\n1 add_oil\n")
    for part, name in (("train", "rgb-01-1"), ("test", "rgb-02-1")):
        (splits / f"{part}.split1.bundle").write_text(f"#bundle.txt\n{name}.txt\n")
        (labels / f"groundTruth/{name}.txt").write_text("cut_tomato\n" * 100 + "add_oil\n" * 100)
        (tmp_path / "DATA/videos/50Salads/rgb").mkdir(parents=True, exist_ok=True)
        video.write(tmp_path / f"DATA/videos/50Salads/rgb/{name}.mp4", counting(200), 25.0)
        (tmp_path / f"DATA/videos/50Salads/rgb/{name}.mp4").rename(tmp_path / f"DATA/videos/50Salads/rgb/{name}.avi")
    found = opened(tmp_path, dataset="salads", tau_a=1.0, tau_o=2.0)
    assert found.parts() == ("train", "val")
    assert (found.verbs, found.verb_of.shape, found.primary) == ((), (0,), "action/top1")
    seen = found.clips("val")
    assert (seen.segments.action.tolist(), seen.dropped.action.tolist()) == ([1], [0])
    assert seen.segments.start_s.tolist() == [4.0], "100 frames at the video's own 25 a second"
    sample = found.dataset("val").sample(0, rng())
    assert sample["label"] == 1
    assert sample["verb"] == -1
    assert max(shown(sample)) == 74, "frame 75 begins at 3 s, the limit"
    assert features.BACKWARDS == 9
