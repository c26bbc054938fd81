"""Which frames of which clips become a sample, and what becomes of their pixels."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core import video
from core.data import Loader, LoaderConfig, SampleError, TooManyBadFiles
from projects.ucf50_x3d import data, splits
from projects.ucf50_x3d.config import ClipConfig, Config, DataConfig
from projects.ucf50_x3d.data import EpicFrames, FolderClips, frame_indices
from projects.ucf50_x3d.eval import score
from projects.ucf50_x3d.splits import Row
from tests.support import cases

CLASSES = ("Billiards", "JumpingJack", "JumpRope")  # in label order: without regard to case
GROUPS, CLIPS, FRAMES = 4, 2, 12
HEIGHT, WIDTH = 36, 48


def grey(number: int) -> int:
    """The grey value of a frame, which tells its number."""
    return 20 + 18 * number


def film(path: Path, frames: int = FRAMES, *, fps: float = 30.0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    """A video whose frames tell their numbers; its left edge is black and its right edge white."""
    pixels = torch.stack([torch.full((*size, 3), grey(number), dtype=torch.uint8) for number in range(frames)])
    pixels[:, :, : size[1] // 4], pixels[:, :, -(size[1] // 4) :] = 0, 255
    video.write(path, pixels, fps, crf=1)


def numbers(frames: torch.Tensor) -> list[int]:
    """The numbers of filmed frames (T,H,W,3), from the grey of their middle."""
    middle = frames[:, :, frames.shape[2] // 2].float().mean((1, 2))
    return [round((float(value) - 20) / 18) for value in middle]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of four groups of two clips; Billiards is spelled otherwise in its file names, as in UCF50."""
    folder = tmp_path_factory.mktemp("ucf")
    first = folder / "first.mp4"
    film(first)
    for name in CLASSES:
        (folder / "set" / name).mkdir(parents=True)
        spelled = "Billards" if name == "Billiards" else name
        for group in range(1, GROUPS + 1):
            for clip in range(1, CLIPS + 1):
                place = folder / "set" / name / f"v_{spelled}_g{group:02d}_c{clip:02d}.mp4"
                place.write_bytes(first.read_bytes())
    return folder / "set"


@pytest.fixture
def no_chance() -> random.Random:
    """A generator that must not be drawn from."""

    class Refusing(random.Random):
        def random(self) -> float:
            raise AssertionError("something was drawn at random")

        def getrandbits(self, k: int) -> int:
            raise AssertionError("something was drawn at random")

    return Refusing()


# Frames


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("ucf50_x3d", "samplers*"), ids=lambda case: case.path.name)
def test_whole_clips_are_thinned_as_the_original_does(case: Any) -> None:
    expected = case.expected
    for name in (name for name in expected if name.startswith("fixed_")):
        cfg = ClipConfig(sampling="whole", frames=int(name.removeprefix("fixed_")))
        for total, wanted in zip(expected["t"].tolist(), expected[name].tolist(), strict=True):
            assert frame_indices(total, 25.0, cfg) == wanted, (name, total)


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("ucf50_x3d", "test_views*"), ids=lambda case: case.path.name)
def test_views_are_those_of_slowfast(case: Any) -> None:
    tests: dict[tuple[Any, ...], dict[int, list[int]]] = {}
    for row in case.json()["views"]:
        key = tuple(row[name] for name in ("video_frames", "fps", "num_frames", "rate", "num_views"))
        tests.setdefault(key, {})[row["view"]] = row["indices"]
    compared = 0
    for (total, fps, frames, rate, views), wanted in tests.items():
        if views == 1:
            continue  # the case's single view is the first of one; ours is the middle, as its centre_offset
        cfg = ClipConfig(sampling="window", frames=frames, rate=rate)
        found = frame_indices(total, fps, cfg, views=views)
        assert len(found) == frames * views
        for view, indices in wanted.items():
            assert found[view * frames : (view + 1) * frames] == indices, (total, fps, view)
            compared += 1
    assert compared >= 40


def test_a_single_window_is_the_middle_and_follows_the_frame_rate() -> None:
    cfg = ClipConfig(sampling="window", frames=4, rate=6)
    assert frame_indices(100, 30.0, cfg) == [38, 45, 53, 61]  # 24 of 100 frames, from 38 to 61
    assert frame_indices(100, 15.0, cfg) == [44, 47, 51, 55]  # the same 0.8 s are 12 frames
    assert frame_indices(10, 30.0, cfg) == [0, 7, 9, 9]  # shorter than the window: its end stands still
    assert frame_indices(1, 30.0, cfg) == [0, 0, 0, 0]


@settings(deadline=None)
@given(
    st.integers(1, 600),
    st.sampled_from([15.0, 25.0, 29.97, 60.0]),
    st.integers(1, 16),
    st.integers(1, 12),
    st.integers(),
)
def test_random_windows_lie_inside_and_depend_on_the_generator_alone(
    total: int, fps: float, frames: int, rate: int, seed: int
) -> None:
    cfg = ClipConfig(sampling="window", frames=frames, rate=rate)
    found = frame_indices(total, fps, cfg, rng=random.Random(seed))
    assert found == frame_indices(total, fps, cfg, rng=random.Random(seed))
    assert len(found) == frames
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] < total
    assert found[-1] - found[0] <= rate * frames / 30 * fps


def test_random_windows_reach_both_ends() -> None:
    cfg, rng = ClipConfig(sampling="window", frames=4, rate=3), random.Random(0)
    windows = [frame_indices(40, 30.0, cfg, rng=rng) for _ in range(300)]
    assert min(window[0] for window in windows) == 0
    assert max(window[-1] for window in windows) >= 38


def test_views_of_the_whole_clip_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need clip\.sampling=window"):
        frame_indices(100, 30.0, ClipConfig(sampling="whole"), views=2)


# Clips of a folder


def rows_of(root: Path) -> list[Row]:
    return splits.scan(root)


def test_a_sample_holds_the_chosen_frames_its_class_and_its_id(root: Path, no_chance: random.Random) -> None:
    clips = FolderClips(root, rows_of(root), ClipConfig(frames=5), train=True)
    assert len(clips) == len(clips.ids) == len(clips.labels) == 24
    sample = clips.sample(0, no_chance)
    assert sample["id"] == clips.ids[0] == "Billiards/v_Billards_g01_c01.mp4"
    assert sample["label"] == 0
    assert sample["video"].dtype == torch.uint8
    assert sample["video"].shape == (5, HEIGHT, WIDTH, 3)
    assert numbers(sample["video"]) == [0, 2, 5, 8, 11]
    assert [clips.labels[i] for i in (7, 8, 16)] == [0, 1, 2]
    assert clips.path(8) == root / "JumpingJack/v_JumpingJack_g01_c01.mp4"


def test_short_clips_repeat_their_last_frame(root: Path, no_chance: random.Random) -> None:
    sample = FolderClips(root, rows_of(root), ClipConfig(frames=15)).sample(3, no_chance)
    assert numbers(sample["video"]) == [*range(12), 11, 11, 11]


def test_views_come_in_front(root: Path, no_chance: random.Random) -> None:
    cfg = ClipConfig(sampling="window", frames=4, rate=1)
    sample = FolderClips(root, rows_of(root), cfg, views=2).sample(0, no_chance)
    assert sample["video"].shape == (2, 4, HEIGHT, WIDTH, 3)
    assert [numbers(view) for view in sample["video"]] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_only_training_with_augmentation_draws(root: Path, no_chance: random.Random) -> None:
    cfg = ClipConfig(sampling="window", frames=3, rate=1, augment=True)
    rows = rows_of(root)
    assert numbers(FolderClips(root, rows, cfg).sample(0, no_chance)["video"]) == [4, 5, 6]
    training = FolderClips(root, rows, cfg, train=True)
    drawn = [numbers(training.sample(0, random.Random(seed))["video"]) for seed in range(12)]
    assert drawn == [numbers(training.sample(0, random.Random(seed))["video"]) for seed in range(12)]
    assert len({window[0] for window in drawn}) > 4
    assert all(window == list(range(window[0], window[0] + 3)) for window in drawn)


@pytest.fixture
def damaged(root: Path, tmp_path: Path) -> Path:
    """The dataset with one empty file, one that is no video and one that was cut off before its index."""
    for path in root.rglob("*.mp4"):
        place = tmp_path / path.relative_to(root)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(path.read_bytes())
    whole = (tmp_path / "JumpRope/v_JumpRope_g01_c01.mp4").read_bytes()
    (tmp_path / "Billiards/v_Billards_g01_c01.mp4").write_bytes(b"")
    (tmp_path / "JumpingJack/v_JumpingJack_g01_c01.mp4").write_text("<html>404</html>" * 50)
    (tmp_path / "JumpRope/v_JumpRope_g01_c01.mp4").write_bytes(whole[: len(whole) // 2])
    return tmp_path


BAD = ("Billiards/v_Billards_g01_c01.mp4", "JumpingJack/v_JumpingJack_g01_c01.mp4", "JumpRope/v_JumpRope_g01_c01.mp4")


def test_a_broken_file_is_named_and_so_is_a_missing_one(damaged: Path, no_chance: random.Random) -> None:
    rows = [*rows_of(damaged), Row("absent.mp4", "JumpRope", 2)]
    clips = FolderClips(damaged, rows, ClipConfig(frames=4))
    for index in (0, 8, 16, 24):
        with pytest.raises(video.VideoError) as caught:
            clips.sample(index, no_chance)
        assert caught.value.path == str(clips.path(index))
        assert len(caught.value.reason) > 5


def test_evaluation_leaves_broken_files_out_and_says_so(damaged: Path) -> None:
    cfg = Config(clip=ClipConfig(frames=4, crop=32))
    clips = FolderClips(damaged, rows_of(damaged), cfg.clip)
    loader = Loader(clips, LoaderConfig(batch_size=5, workers=0), train=False)
    ids = [name for batch in loader for name in batch["id"]]
    assert ids == [name for name in clips.ids if name not in BAD]
    coverage = loader.coverage()
    assert (coverage.expected, coverage.scored) == (24, 21)
    assert set(coverage.bad) == {str(damaged / name) for name in BAD}
    assert all(str(damaged / name) in str(coverage) for name in BAD)


def test_training_replaces_broken_files_until_there_are_too_many(damaged: Path) -> None:
    clips = FolderClips(damaged, rows_of(damaged), ClipConfig(frames=4))
    loader = Loader(clips, LoaderConfig(batch_size=6, workers=0, max_bad=0.2), train=True)
    ids = [name for _ in loader.epochs(1) for batch in loader for name in batch["id"]]
    assert len(ids) == 24
    assert not set(ids) & set(BAD)
    assert set(loader.bad) == {str(damaged / name) for name in BAD}
    strict = Loader(clips, LoaderConfig(batch_size=6, workers=0, max_bad=0.05), train=True)
    with pytest.raises(TooManyBadFiles, match=r"(?s)could not be read.*v_\w+_g01_c01.mp4: "):
        list(strict)


# Protocols


def parts(benchmark: data.Benchmark) -> list[list[str]]:
    return [benchmark.dataset(part, ClipConfig()).ids for part in splits.SPLITS]


def groups(names: list[str]) -> set[str]:
    return {name.rsplit("_c", 1)[0] for name in names}


@pytest.mark.parametrize(
    "chosen", [{}, {"protocol": "fold", "fold": 2}, {"protocol": "random"}], ids=["grouped", "fold", "random"]
)
def test_protocols_share_out_every_clip_once(root: Path, chosen: dict[str, Any]) -> None:
    benchmark = data.load(DataConfig(root=root, **chosen))
    assert benchmark.classes == CLASSES
    train, val, test = parts(benchmark)
    everything = [f"{row.action}/{row.video_name}" for row in splits.scan(root)]
    assert sorted([*train, *val, *test]) == sorted(everything)
    leaking = bool(groups(train) & groups(test))
    assert leaking == (chosen.get("protocol") == "random")
    if chosen.get("protocol") == "fold":
        assert {name.rsplit("_g", 1)[1][:2] for name in test} == {"02"}
        assert {name.rsplit("_g", 1)[1][:2] for name in val} == {"03"}
    for part in splits.SPLITS:
        dataset = benchmark.dataset(part, ClipConfig(frames=3), train=part == "train")
        assert isinstance(dataset, FolderClips)
        assert dataset.train == (part == "train")
        assert all(
            CLASSES[label] == name.split("/")[0] for label, name in zip(dataset.labels, dataset.ids, strict=True)
        )


def test_the_random_split_is_said_to_leak_and_the_grouped_one_is_not(root: Path) -> None:
    leaking = data.load(DataConfig(root=root, protocol="random"))
    share = leaking.split.leaks("test") if leaking.split else 0.0
    assert share > 0
    assert f"it LEAKS: {share:.1%} of the test clips share their source video with train" in leaking.describe()
    honest = data.load(DataConfig(root=root)).describe()
    assert honest == f"{root}: 3 classes, 12 train, 6 val, 6 test clips (protocol grouped)"


def test_seed_and_shares_of_the_split(root: Path) -> None:
    drawn = {str(parts(data.load(DataConfig(root=root, seed=seed)))) for seed in range(6)}
    assert len(drawn) > 1
    train, val, test = parts(data.load(DataConfig(root=root, held_out=0.5, test_of_held_out=1.0)))
    assert (len(train), len(val), len(test)) == (12, 0, 12)


def test_the_originals_files_are_read_as_they_are(root: Path, tmp_path: Path) -> None:
    rows = splits.scan(root)
    splits.write(rows, splits.split_rows(rows, "random"), tmp_path)
    found = data.load(DataConfig(root=root, protocol="files", annotations=tmp_path))
    made = data.load(DataConfig(root=root, protocol="random"))
    assert found.classes == made.classes
    assert parts(found) == parts(made)
    with pytest.raises(ValueError, match=r"data\.annotations=FOLDER"):
        data.load(DataConfig(root=root, protocol="files"))
    with pytest.raises(ValueError, match=r"train_annotations.csv does not exist"):
        data.load(DataConfig(root=root, protocol="files", annotations=tmp_path / "no"))


def test_files_that_contradict_each_other_are_refused(root: Path, tmp_path: Path) -> None:
    rows = splits.scan(root)
    splits.write(rows, splits.split_rows(rows, "grouped"), tmp_path)
    cfg = DataConfig(root=root, protocol="files", annotations=tmp_path)
    labels = tmp_path / "actions_label.csv"
    labels.write_text("action,label\nBilliards,0\nJumpRope,1\nJumpingJack,2\n")
    with pytest.raises(ValueError, match=r"JumpingJack/\S+ has label 1, which is JumpRope in actions_label.csv"):
        data.load(cfg)
    labels.write_text("action,label\nBilliards,0\nJumpingJack,1\n")
    with pytest.raises(ValueError, match=r"JumpRope/\S+ has label 2, which is no class in actions_label.csv"):
        data.load(cfg)
    labels.write_text("action,label\nBilliards,0\nJumpingJack,2\n")
    with pytest.raises(ValueError, match=r"actions_label.csv: labels must be 0\.\.1"):
        data.load(cfg)
    for text in ("name,number\nBilliards,0\n", "action,label\nBilliards,zero\n"):
        labels.write_text(text)
        with pytest.raises(ValueError, match=r"actions_label.csv: expected lines action,label"):
            data.load(cfg)
    labels.unlink()  # the class names are in the others too
    assert data.load(cfg).classes == CLASSES


@pytest.fixture
def lists(root: Path, tmp_path: Path) -> Path:
    """Lists as UCF101 has them: the first group tests; labels count from 1 and only the training list has them."""
    names = [f"{row.action}/{row.video_name} {row.label + 1}" for row in splits.scan(root)]
    (tmp_path / "trainlist01.txt").write_text("".join(f"{name}\n" for name in names if "_g01_" not in name))
    (tmp_path / "testlist01.txt").write_text("".join(f"{name.split()[0]}\n" for name in names if "_g01_" in name))
    return tmp_path


def test_ucf101_lists(root: Path, lists: Path) -> None:
    cfg = DataConfig(root=root, protocol="lists", annotations=lists)
    benchmark = data.load(cfg)
    train, val, test = parts(benchmark)
    assert benchmark.classes == CLASSES
    assert (len(train), len(val), len(test)) == (12, 6, 6)
    assert all("_g01_" in name for name in test)
    assert not groups(train) & groups(val)
    assert not groups(train + val) & groups(test)
    whole = data.load(cfg.model_copy(update={"test_of_held_out": 1.0}))
    assert [len(part) for part in parts(whole)] == [18, 0, 6]
    with pytest.raises(ValueError, match=r"trainlist02.txt does not exist.*data\.fold"):
        data.load(cfg.model_copy(update={"fold": 2}))


def test_lists_of_a_dataset_that_is_only_partly_here(root: Path, lists: Path) -> None:
    with (lists / "testlist01.txt").open("a") as file:
        file.write("YoYo/v_YoYo_g01_c01.avi\n")
    cfg = DataConfig(root=root, protocol="lists", annotations=lists)
    with pytest.raises(ValueError, match=r"testlist01.txt: 1 clips are not in the dataset folder.*YoYo/v_YoYo_g01_c01"):
        data.load(cfg)
    chosen = data.load(cfg.model_copy(update={"classes": ("Billiards", "JumpRope")}))
    assert chosen.classes == ("Billiards", "JumpRope")
    assert [len(part) for part in parts(chosen)] == [8, 4, 4]


@pytest.mark.parametrize("protocol", ["grouped", "fold", "random", "files", "lists"])
def test_chosen_classes_are_numbered_anew_and_keep_their_parts(root: Path, lists: Path, protocol: Any) -> None:
    rows = splits.scan(root)
    splits.write(rows, splits.split_rows(rows, "grouped"), lists)
    cfg = DataConfig(root=root, protocol=protocol, annotations=lists)
    every, chosen = data.load(cfg), data.load(cfg.model_copy(update={"classes": ("JumpRope", "Billiards")}))
    assert chosen.classes == ("Billiards", "JumpRope")
    wanted = [[name for name in part if not name.startswith("JumpingJack")] for part in parts(every)]
    assert parts(chosen) == wanted
    test = chosen.dataset("test", ClipConfig())
    assert {(name.split("/")[0], label) for name, label in zip(test.ids, test.labels, strict=True)} <= {
        ("Billiards", 0),
        ("JumpRope", 1),
    }
    with pytest.raises(ValueError, match=r"data\.classes: no class YoYo; there are Billiards, JumpingJack, JumpRope"):
        data.load(cfg.model_copy(update={"classes": ("JumpRope", "YoYo")}))


def test_a_dataset_without_group_numbers(tmp_path: Path) -> None:
    """HMDB51's or one's own names: every clip is its own group; leaving one group out has no meaning."""
    for name in ("wave", "walk"):
        (tmp_path / name).mkdir()
        for clip in range(10):
            (tmp_path / name / f"{name} {clip}.avi").touch()
    benchmark = data.load(DataConfig(root=tmp_path))
    assert benchmark.classes == ("walk", "wave")
    assert sorted(name for part in parts(benchmark) for name in part) == sorted(
        f"{name}/{name} {clip}.avi" for name in ("wave", "walk") for clip in range(10)
    )
    assert [len(part) for part in parts(benchmark)] == [14, 2, 4]
    assert "LEAKS" not in benchmark.describe()
    with pytest.raises(ValueError, match=r"walk/walk 0.avi has no group number \(_gNN_cNN\); use protocol=grouped"):
        data.load(DataConfig(root=tmp_path, protocol="fold"))


def test_a_missing_or_empty_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist; expected \S+nowhere/<Class>/<clip>.avi"):
        data.load(DataConfig(root=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="holds no class folder with videos"):
        data.load(DataConfig(root=tmp_path))


# Pixels


def raw(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)


def draws(count: int, seed: int = 0) -> list[random.Random]:
    return [random.Random(f"{seed}/{number}") for number in range(count)]


def test_the_reference_pipeline_cuts_the_middle_and_fills_with_zeros() -> None:
    clips = raw(2, 3, 24, 40)
    out = data.pipeline(ClipConfig(frames=3, crop=32))(clips)
    assert out.shape == (2, 3, 3, 32, 32)
    assert out.dtype == torch.float32
    assert torch.equal(out[..., :4, :], torch.zeros(2, 3, 3, 4, 32))
    assert torch.equal(out[..., 28:, :], torch.zeros(2, 3, 3, 4, 32))
    wanted = (clips[:, :, :, 4:36].permute(0, 4, 1, 2, 3).double() / 255 - 0.45) / 0.225
    assert torch.allclose(out[..., 4:28, :].double(), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "crops", "wanted"),
    [
        ((2, 4, 30, 40), 1, (2, 3, 4, 24, 24)),
        ((2, 4, 30, 40), 3, (2, 3, 3, 4, 24, 24)),
        ((2, 5, 4, 30, 40), 1, (2, 5, 3, 4, 24, 24)),
    ],
    ids=["one view", "three crops", "five views"],
)
def test_shapes_of_test_clips(shape: tuple[int, ...], crops: int, wanted: tuple[int, ...]) -> None:
    cfg = ClipConfig(frames=4, crop=16, test_crop=24, short_side=26)
    assert data.pipeline(cfg, crops=crops)(raw(*shape)).shape == wanted


def test_every_view_has_its_crops() -> None:
    cfg = ClipConfig(sampling="window", frames=4, crop=16, short_side=18)
    clips = raw(2, 5, 4, 30, 40)
    out = data.pipeline(cfg, crops=3)(clips)
    assert out.shape == (2, 5, 3, 3, 4, 16, 16)
    for view in range(5):
        assert torch.equal(out[:, view], data.pipeline(cfg, crops=3)(clips[:, view]))


def test_views_and_crops_are_scored_as_the_mean_of_their_shares() -> None:
    """The published protocol has 10 views of 3 crops; whatever stands between clip and batch is a view."""

    class Model(torch.nn.Module):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            assert clips.shape[1:] == (3, 2, 4, 4)
            return clips.flatten(1)[:, :5] * 3

    model = Model()
    views = torch.randn(2, 4, 3, 3, 2, 4, 4)
    shares = torch.stack([model(views[:, v, c]).softmax(-1) for v in range(4) for c in range(3)]).mean(0)
    for form in (views, views.flatten(1, 2)):
        assert torch.allclose(score(model, form).exp(), shares, atol=1e-6)
    assert torch.allclose(score(model, views[:, 0, 0]).exp(), model(views[:, 0, 0]).softmax(-1), atol=1e-6)


def test_three_crops_run_along_the_long_side() -> None:
    clips = raw(1, 2, 16, 40)
    out = data.pipeline(ClipConfig(frames=2, crop=16), crops=3)(clips)
    for number, left in enumerate((0, 12, 24)):
        one = data.pipeline(ClipConfig(frames=2, crop=16))(clips[..., left : left + 16, :])
        assert torch.equal(out[:, number], one)


def test_augmentation_is_drawn_per_clip_and_repeats_with_the_generator() -> None:
    cfg = ClipConfig(frames=2, crop=16, short_side=18, augment=True, jitter=(18, 24))
    change = data.pipeline(cfg, train=True)
    clips = raw(1, 2, 30, 40).expand(6, 2, 30, 40, 3)
    out = change(clips, draws(6))
    assert out.shape == (6, 3, 2, 16, 16)
    assert torch.equal(out, change(clips, draws(6)))
    assert len({tuple(clip.flatten()[:8].tolist()) for clip in out}) == 6
    testing = data.pipeline(cfg)(clips)
    assert torch.equal(testing[0], testing[5])


def test_flip_is_a_chance_of_its_own() -> None:
    clips = raw(1, 2, 16, 16)
    plain = data.pipeline(ClipConfig(crop=16, augment=True, flip=0.0), train=True)(clips, draws(1))
    mirrored = data.pipeline(ClipConfig(crop=16, augment=True, flip=1.0), train=True)(clips, draws(1))
    assert torch.equal(plain.flip(-1), mirrored)


def test_training_without_augmentation_sees_the_training_crop() -> None:
    cfg = ClipConfig(crop=16, test_crop=24)
    assert data.pipeline(cfg, train=True)(raw(1, 2, 30, 40)).shape[-2:] == (16, 16)
    assert data.pipeline(cfg)(raw(1, 2, 30, 40)).shape[-2:] == (24, 24)


def test_mixup_blends_clips_and_labels_alike(root: Path) -> None:
    clip = ClipConfig(frames=2, crop=16, augment=True, flip=0.0, mixup=0.8)
    cfg, benchmark = Config(clip=clip), data.load(DataConfig(root=root))
    clips = raw(4, 2, 16, 16)  # as large as the crop, so that only mixing changes them
    batch = {"id": list("abcd"), "video": clips, "label": torch.tensor([0, 1, 2, 0])}
    mixed = data.transform(cfg, benchmark, train=True)(dict(batch), draws(4))
    assert mixed["id"] == batch["id"]
    assert mixed["label"].shape == (4, 3)
    assert torch.allclose(mixed["label"].sum(1), torch.ones(4))
    share = float(mixed["label"][1, 1])  # the first clip's neighbour, the last, has the same class
    assert 0 < share < 1
    plain = data.pipeline(clip.model_copy(update={"augment": False}))(clips)
    assert torch.allclose(mixed["video"][1], share * plain[1] + (1 - share) * plain[0], atol=1e-5)
    assert mixed["label"][1].tolist() == pytest.approx([1 - share, share, 0])
    for training, chosen in ((False, clip), (True, clip.model_copy(update={"mixup": 0.0}))):
        out = data.transform(Config(clip=chosen), benchmark, train=training)(dict(batch), draws(4))
        assert out["label"].tolist() == [0, 1, 2, 0]
        assert torch.equal(out["video"], plain)


def test_a_loader_gives_what_the_model_takes(root: Path) -> None:
    cfg = Config(
        data=DataConfig(root=root),
        clip=ClipConfig(sampling="window", frames=4, rate=1, crop=24, short_side=26, augment=True, jitter=(26, 30)),
    )
    benchmark = data.load(cfg.data)
    batches = {}
    for training, crops, views in ((True, 1, 1), (False, 3, 2)):
        loader = Loader(
            benchmark.dataset("val", cfg.clip, train=training, views=views),
            LoaderConfig(batch_size=4, workers=0),
            train=training,
            transform=data.transform(cfg, benchmark, train=training, crops=crops),
        )
        batches[training] = next(iter(loader))
    assert batches[True]["video"].shape == (4, *data.example(cfg.clip).shape[1:])
    assert batches[False]["video"].shape == (4, 2, 3, *data.example(cfg.clip).shape[1:])
    assert batches[False]["label"].tolist() == [0, 0, 1, 1]


# EPIC-KITCHENS frames

COLUMNS = [
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
]  # fmt: skip


def segment(name: str, first: int, last: int, verb: int, noun: int, *, seen: str = "P02_07") -> list[Any]:
    stop = f"00:00:{last / 50:05.2f}"
    return [name, "P02", seen, stop, stop, stop, first, last, f"do {name}", "do", verb, "it", noun, "['it']", [noun]]


def write_csv(path: Path, rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    """One video of 12 pictures, of which 5 and 9 are missing, and five segments in it."""
    folder = tmp_path / "P02" / "rgb_frames" / "P02_07"
    folder.mkdir(parents=True)
    for number in sorted({*range(1, 13)} - {5, 9}):
        Image.new("RGB", (WIDTH, HEIGHT), (grey(number),) * 3).save(folder / f"frame_{number:010d}.jpg", quality=95)
    train = [segment("t0", 2, 4, 3, 1), segment("t1", 4, 10, 0, 7), segment("t2", 3, 12, 3, 7)]
    val = [segment("v0", 1, 12, 1, 1), segment("v1", 20, 22, 3, 1)]
    write_csv(tmp_path / "annotations" / "EPIC_100_train.csv", train)
    write_csv(tmp_path / "annotations" / "EPIC_100_validation.csv", val)
    return tmp_path


def epic(root: Path, **more: Any) -> data.Benchmark:
    return data.load(DataConfig(dataset="ek100", root=root, **more))


def test_segments_hold_both_ends_and_skip_missing_pictures(kitchen: Path, no_chance: random.Random) -> None:
    frames = epic(kitchen).dataset("train", ClipConfig(frames=4))
    assert isinstance(frames, EpicFrames)
    assert [frames.frames(index) for index in range(3)] == [[2, 3, 4], [4, 6, 7, 8, 10], [3, 4, 6, 7, 8, 10, 11, 12]]
    first, second, third = (frames.sample(index, no_chance) for index in range(3))
    assert numbers(first["video"]) == [2, 3, 4, 4]  # short: the last one again
    assert numbers(second["video"]) == [4, 6, 7, 10]
    assert numbers(third["video"]) == [3, 6, 8, 12]
    assert (second["id"], second["label"], second["narration"]) == ("t1", 0, "do t1")
    assert second["video"].shape == (4, HEIGHT, WIDTH, 3)


def test_a_segment_without_pictures_is_named_and_left_out_of_evaluation(kitchen: Path) -> None:
    frames = epic(kitchen).dataset("val", ClipConfig(frames=4))
    with pytest.raises(SampleError, match=r"P02_07: no frame of 20\.\.22 \(v1\) is there") as caught:
        frames.sample(1, random.Random(0))
    assert caught.value.path == str(kitchen / "P02/rgb_frames/P02_07")
    loader = Loader(frames, LoaderConfig(workers=0), train=False)
    assert [batch["id"] for batch in loader] == [["v0"]]
    assert (loader.expected, loader.scored) == (2, 1)


def test_segments_in_windows_follow_the_videos_rate(kitchen: Path) -> None:
    """At 50 frames a second, two of every six at 30 are ten apart; windows of training move."""
    cfg = ClipConfig(sampling="window", frames=2, rate=3, augment=True)
    benchmark = epic(kitchen)
    dataset = benchmark.dataset("val", cfg)
    assert isinstance(dataset, EpicFrames)
    assert dataset.segments[0].fps == pytest.approx(50)
    assert numbers(dataset.sample(0, random.Random(0))["video"]) == [1, 12]  # 10 pictures, a window of 10
    views = benchmark.dataset("val", ClipConfig(sampling="window", frames=2, rate=1), views=2)
    assert views.sample(0, random.Random(0))["video"].shape == (2, 2, HEIGHT, WIDTH, 3)
    training = benchmark.dataset("train", cfg.model_copy(update={"rate": 1}), train=True)
    assert len({str(numbers(training.sample(2, random.Random(s))["video"])) for s in range(20)}) > 2


def test_labels_of_kitchens(kitchen: Path) -> None:
    verbs, nouns, actions = (epic(kitchen, labels=kind) for kind in ("verb", "noun", "action"))
    assert [verbs.dataset(part, ClipConfig()).labels for part in splits.SPLITS] == [[3, 0, 3], [1, 3], [1, 3]]
    assert nouns.dataset("train", ClipConfig()).labels == [1, 7, 7]
    assert verbs.classes == ("verb 0", "verb 1", "verb 2", "verb 3")
    assert actions.classes == ("verb 0, noun 7", "verb 1, noun 1", "verb 3, noun 1", "verb 3, noun 7")
    assert actions.dataset("train", ClipConfig()).labels == [2, 0, 3]
    assert actions.dataset("test", ClipConfig()).labels == [1, 2]
    assert verbs.describe() == f"{kitchen}: 4 classes, 3 train, 2 val, 2 test clips (verb labels, test is val)"
    names = kitchen / "annotations" / "EPIC_100_verb_classes.csv"
    names.write_text("id,key,instances\n" + "".join(f"{k},{word},\"['x']\"\n" for k, word in enumerate("abcde")))
    assert epic(kitchen).classes == ("a", "b", "c", "d", "e")
    names.write_text("id,key,instances\n0,a,x\n")
    with pytest.raises(ValueError, match=r"EPIC_100_verb_classes.csv: expected .*names of 4 classes"):
        epic(kitchen)


def test_annotations_of_kitchens_that_cannot_be_read_are_named(kitchen: Path) -> None:
    path = kitchen / "annotations" / "EPIC_100_train.csv"
    row = segment("t9", 1, 3, 0, 0)
    row[COLUMNS.index("stop_timestamp")] = "3 s"
    write_csv(path, [segment("t0", 1, 2, 0, 0), row])
    with pytest.raises(ValueError, match=r"EPIC_100_train.csv, line 3: .*expected narration_id, video_id"):
        epic(kitchen)
    path.write_text("narration_id,video_id\nx,P01_01\n")
    with pytest.raises(
        ValueError, match=r"EPIC_100_train.csv: column narration, noun_class, start_frame, .* is missing"
    ):
        epic(kitchen)
    path.write_text(",".join(COLUMNS) + "\nt0,P02\n")
    with pytest.raises(ValueError, match=r"EPIC_100_train.csv, line 2: "):
        epic(kitchen)
    path.unlink()
    with pytest.raises(ValueError, match=r"EPIC_100_train.csv does not exist; expected an official csv"):
        epic(kitchen)
