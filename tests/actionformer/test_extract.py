"""Videos -> features: the right frames in every window, each decoded once, resumable, honest about bad files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from core import config, run, video
from core.video import Reader
from projects.actionformer import extract, extractors
from projects.actionformer.config import Config, ExtractConfig
from projects.actionformer.extract import windows
from projects.actionformer.extractors import Extractor, Motion
from projects.actionformer.features import Source

FRAMES = 50
STEP = 4  # of brightness, from frame to frame


class Seen(nn.Module):
    """Features that are the numbers of the frames in a window, told by their brightness."""

    def forward(self, clips: Tensor) -> Tensor:
        """(B,3,T,H,W) in 0..1 -> (B,T)."""
        return clips.mean((1, 3, 4)) * 255 / STEP


def seen(cfg: ExtractConfig | None = None) -> Extractor:
    return Extractor("seen", Seen(), lambda frames: frames.movedim(-1, 0).float() / 255)


def gray_video(path: Path, frames: int = FRAMES, fps: float = 25, size: tuple[int, int] = (32, 48)) -> Path:
    pictures = torch.arange(frames, dtype=torch.uint8).mul(STEP).view(-1, 1, 1, 1).expand(-1, *size, 3)
    return video.write(path, pictures, fps, crf=1)


@pytest.fixture(scope="module")
def gray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gray_video(tmp_path_factory.mktemp("gray") / "gray.mp4")


def numbers(path: Path, **keys: Any) -> np.ndarray:
    rows, _, _ = extract.features(path, seen(), ExtractConfig(**keys))
    return rows.round().astype(int)


# --------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize(
    ("stride", "window", "batch"), [(8, 16, 4), (4, 16, 3), (16, 16, 4), (1, 5, 7), (12, 5, 2), (8, 16, 1), (50, 50, 2)]
)
def test_every_window_sees_its_frames(gray: Path, stride: int, window: int, batch: int) -> None:
    found = numbers(gray, stride=stride, window=window, batch_size=batch, fps=None)
    starts = range(0, FRAMES - window + 1, stride)
    assert found.shape == (len(starts), window)
    np.testing.assert_array_equal(found, [list(range(start, start + window)) for start in starts])


def test_a_video_shorter_than_a_window_holds_its_last_frame(tmp_path: Path) -> None:
    path = gray_video(tmp_path / "short.mp4", 5)
    np.testing.assert_array_equal(numbers(path, window=8, fps=None), [[0, 1, 2, 3, 4, 4, 4, 4]])


def test_another_frame_rate_takes_what_is_on_screen(gray: Path) -> None:
    np.testing.assert_array_equal(numbers(gray, fps=12.5, stride=5, window=5)[1], [10, 12, 14, 16, 18])
    found = numbers(gray, fps=50, stride=4, window=4)
    np.testing.assert_array_equal(found[0], [0, 0, 1, 1])
    assert len(found) == 25


@pytest.mark.parametrize("fps", [30000 / 1001, 23.976, 59.94, 15.0])
def test_odd_frame_rates_lose_and_shift_nothing(tmp_path: Path, fps: float) -> None:
    path = gray_video(tmp_path / "odd.mp4", 40, fps)
    rows, plan, _ = extract.features(path, seen(), ExtractConfig(fps=None, stride=1, window=1))
    np.testing.assert_array_equal(rows[:, 0].round(), np.arange(40))
    assert plan.geometry.fps == pytest.approx(fps, rel=1e-4)
    assert plan.duration_s == pytest.approx(40 / fps, rel=1e-3)


def test_frames_are_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.set_display_rotation(90)
        picture = np.zeros((32, 48, 3), np.uint8)
        picture[:, 24:] = 255  # bright on the right side as stored
        for _ in range(8):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))

    class Shape(nn.Module):
        def forward(self, clips: Tensor) -> Tensor:
            top, bottom = clips[:, :, :, : clips.shape[3] // 2].mean((1, 2, 3, 4)), clips.mean((1, 2, 3, 4))
            return torch.stack([torch.full_like(top, clips.shape[3]), top, bottom], 1)

    extractor = Extractor("shape", Shape(), lambda frames: frames.movedim(-1, 0).float() / 255)
    rows, _, _ = extract.features(path, extractor, ExtractConfig(window=4, stride=4, fps=None))
    assert rows[0, 0] == 48  # the height is the stored width
    assert rows[0, 1] == pytest.approx(1, abs=0.05)  # and the bright half is on top


def test_every_frame_is_decoded_and_prepared_once(gray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    prepared: list[int] = []
    read = Reader.read

    def counted(self: Reader, indices: Sequence[int], **keys: Any) -> Tensor:
        asked.extend(indices)
        return read(self, indices, **keys)

    monkeypatch.setattr(Reader, "read", counted)
    plain = seen()

    def prepare(frames: Tensor) -> Tensor:
        prepared.append(len(frames))
        return plain.prepare(frames)

    extractor = Extractor("seen", plain.net, prepare)
    rows, _, _ = extract.features(gray, extractor, ExtractConfig(stride=2, window=16, batch_size=3, fps=None))
    assert len(rows) == 18
    assert sorted(asked) == list(range(FRAMES))
    assert sum(prepared) == FRAMES
    assert max(prepared) <= extract.READ


@given(
    st.integers(1, 400),
    st.floats(5, 60),
    st.one_of(st.none(), st.floats(2, 60)),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_windows_tile_the_video(frames: int, fps: float, wanted: float | None, stride: int, window: int) -> None:
    times = [k / fps for k in range(frames)]
    plan = windows(times, frames / fps, fps, ExtractConfig(fps=wanted, stride=stride, window=window))
    assert (np.diff(plan.frames) >= 0).all()
    assert plan.frames[0] == 0
    assert plan.frames[-1] < frames
    assert len(plan) >= 1
    end = plan.span(len(plan) - 1, 1)[1]
    assert end <= max(len(plan.frames), window)
    assert len(plan.frames) - end < stride or len(plan) == 1
    rate = wanted or fps
    middle_s = plan.geometry.seconds(0.0)
    assert middle_s == pytest.approx(window / 2 / rate)
    if wanted is None:
        np.testing.assert_array_equal(plan.frames, np.arange(frames))


def test_a_variable_frame_rate_becomes_an_even_one() -> None:
    times = [0.0, 0.04, 0.08, 1.0, 1.04, 1.08]
    plan = windows(times, 1.12, 6 / 1.12, ExtractConfig(fps=25.0, stride=1, window=1))
    assert plan.frames[[0, 1, 2, 10, 24, 25, 26]].tolist() == [0, 1, 2, 2, 2, 3, 4]


@pytest.mark.gpu
def test_a_gpu_gives_the_same_features(gray: Path) -> None:
    cfg = ExtractConfig(model="motion", stride=4, window=16, fps=None)
    cpu, _, _ = extract.features(gray, extractors.load(cfg), cfg, precision="fp32")
    cuda, _, _ = extract.features(gray, extractors.load(cfg, "cuda"), cfg, device="cuda", precision="fp32")
    np.testing.assert_allclose(cuda, cpu, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------- folders


def command(root: Path, *overrides: str) -> list[str]:
    return [
        f"run.out={root / 'run'}", "run.threads=1", f"extract.videos={root / 'videos'}",
        f"data.features=[{root / 'features'}]", "extract.model=motion", "extract.fps=null", *overrides,
    ]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        gray_video(tmp_path / "videos" / "deep" / f"{name}.mp4", 40)
    return tmp_path


def test_a_folder_of_videos_becomes_features_with_their_geometry(root: Path) -> None:
    assert extract.main(command(root, "extract.stride=4", "extract.window=8")) == 0
    source = Source(root / "features")
    assert source.names == {"a", "b", "c"}
    assert source.shape("a") == (9, 48)
    about = json.loads((root / "features" / "a.json").read_text())
    assert (about["fps"], about["stride"], about["window"], about["offset"]) == (25, 4, 8, 0)
    assert about["duration"] == pytest.approx(1.6)
    assert (about["features"], about["channels"], about["model"]) == (9, 48, "motion")
    assert source.recorded("a") == (25, 4, 8, about["duration"], "motion")


def test_a_second_run_makes_only_what_is_missing(root: Path) -> None:
    extract.main(command(root))
    stamp = (root / "features" / "a.npy").stat().st_mtime_ns
    (root / "features" / "b.json").unlink()  # killed between the two files
    gray_video(root / "videos" / "deep" / "c.mp4", 48)  # changed since
    assert extract.main(command(root)) == 0
    assert (root / "features" / "a.npy").stat().st_mtime_ns == stamp
    assert (root / "features" / "b.json").is_file()
    assert Source(root / "features").shape("c") == (5, 48)


def test_other_settings_are_refused_unless_everything_is_made_again(root: Path) -> None:
    extract.main(command(root))
    with pytest.raises(ValueError, match=r"a.npy was made with stride=8, now it is 4; .* extract.overwrite=true"):
        extract.main(command(root, "extract.stride=4"))
    assert extract.main(command(root, "extract.stride=4", "extract.overwrite=true")) == 0
    assert Source(root / "features").shape("a") == (7, 48)


def test_a_file_that_is_no_video_is_named_and_the_others_are_made(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "videos" / "bad.mp4").write_bytes(b"no video at all")
    assert extract.main(command(root)) == 1
    assert Source(root / "features").names == {"a", "b", "c"}
    said = capsys.readouterr()
    assert "left out: " in said.err
    assert "bad.mp4" in said.err
    assert "1 videos could not be read" in said.out


def test_a_file_that_breaks_off_gives_what_it_has_and_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "videos" / "cut.mp4"
    video.write(path, torch.randint(0, 255, (100, 64, 64, 3), dtype=torch.uint8), 25)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    assert extract.main(command(root)) == 0
    about = json.loads((root / "features" / "cut.json").read_text())
    assert 40 < about["video_frames"] < 80
    assert about["lost"] > 0
    assert about["duration"] == pytest.approx(about["video_frames"] / 25)
    assert f"cut.mp4: damaged, {about['video_frames']} of 100 frames can be read" in capsys.readouterr().err


def test_half_of_the_disk(root: Path) -> None:
    extract.main(command(root, "extract.dtype=float16"))
    assert np.load(root / "features" / "a.npy").dtype == np.float16


def test_a_full_disk_leaves_no_half_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, array: np.ndarray) -> None:
        file.write(b"\x93NUMPY half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"No space left"):
        extract.main(command(root))
    assert list((root / "features").iterdir()) == []


def test_two_videos_of_one_name_are_refused(root: Path) -> None:
    gray_video(root / "videos" / "a.mp4", 5)
    with pytest.raises(ValueError, match=r"would both be a.npy"):
        extract.find(root / "videos")
    with pytest.raises(ValueError, match=r"neither a video nor a folder"):
        extract.find(root / "nothing")


def share(overrides: list[str]) -> tuple[int, list[str]]:
    """What one of two processes does."""
    cfg = config.load(Config, overrides=overrides)
    with run.start(cfg, cfg.run, visit=True) as job:
        extract.extract(cfg, job)
        return job.world.rank, sorted(path.stem for path in cfg.data.features[0].glob("*.npy"))


@pytest.mark.dist
def test_processes_share_the_videos(root: Path, two: Any) -> None:
    two(share, command(root))
    assert Source(root / "features").names == {"a", "b", "c"}


def test_a_stop_signal_ends_after_the_video_at_hand(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = extract.features

    def slow(*args: Any, **keys: Any) -> Any:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **keys)

    monkeypatch.setattr(extract, "features", slow)
    cfg = config.load(Config, overrides=command(root))
    with run.start(cfg, cfg.run, visit=True) as job:
        extract.extract(cfg, job)
        done = Source(root / "features").names
        job._signals.received.clear()
    assert done == {"a"}


# ---------------------------------------------------------------------------------------------------------- extractors


def test_motion_tells_still_from_moving() -> None:
    still = torch.rand(1, 3, 1, 32, 32).expand(-1, -1, 8, -1, -1)
    moving = torch.rand(1, 3, 8, 32, 32)
    quiet, busy = Motion()(still), Motion()(moving)
    assert quiet.shape == (1, 48)
    assert not quiet[:, 16:].any()
    assert (busy[:, 16:32] > 1).all()
    assert Motion()(moving[:, :, :1]).isfinite().all()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model": "i3d"}, "needs extract.weights=FILE"),
        ({"model": "i3d", "weights": "nowhere.ckpt"}, "no such file"),
        ({"model": "resnet18"}, "is not known; choose of i3d, motion, mc3_18"),
        ({"model": "r3d_18", "short_side": 64}, "as it was trained"),
        ({"model": "r3d_18", "weights": "IMAGENET"}, "neither a file nor one of KINETICS400_V1"),
        ({"model": "mvit_v2_s", "weights": "W", "window": 8}, "neither a file"),
        ({"model": "nowhere.at_all:build"}, "cannot be imported"),
        ({"model": f"{__name__}:gray_video_name"}, "cannot be imported"),
        ({"model": f"{__name__}:not_an_extractor"}, "gave a int, expected"),
        ({"model": "motion", "short_side": 32, "crop": 64}, "crop=64 is larger"),
    ],
)
def test_an_extractor_that_cannot_be_is_explained(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        extractors.load(ExtractConfig(**keys))


def not_an_extractor(cfg: ExtractConfig) -> Any:
    return 3


def test_an_extractor_of_ones_own(gray: Path) -> None:
    extractor = extractors.load(ExtractConfig(model=f"{__name__}:seen"))
    assert extractor.name == "seen"
    rows, _, _ = extract.features(gray, extractor, ExtractConfig(fps=None, window=2, stride=2))
    assert rows[3].round().tolist() == [6, 7]


@pytest.mark.parametrize(("name", "channels"), [("r3d_18", 512), ("s3d", 1024)])
def test_models_of_torchvision_give_what_their_last_layer_sees(
    tmp_path: Path, gray: Path, name: str, channels: int
) -> None:
    from torchvision.models import get_model, get_model_weights

    torch.manual_seed(1)
    whole = get_model(name, weights=None).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    cfg = ExtractConfig(model=name, weights=str(tmp_path / "weights.pth"), window=16, stride=40, fps=None)
    extractor = extractors.load(cfg)
    assert extractor.weights.startswith("weights.pth ")
    rows, _, _ = extract.features(gray, extractor, cfg)
    assert rows.shape == (1, channels)
    clip = get_model_weights(name).DEFAULT.transforms()(video.read(gray, range(16)).permute(0, 3, 1, 2))
    last: list[Tensor] = []
    head = whole.fc if name == "r3d_18" else whole.classifier
    head.register_forward_pre_hook(lambda module, inputs: last.append(inputs[0]))
    with torch.inference_mode():
        whole(clip[None])
    np.testing.assert_allclose(rows[0], last[0].flatten(2).mean(2)[0] if last[0].ndim == 5 else last[0][0], atol=1e-4)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    video.close_all()
