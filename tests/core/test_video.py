"""Video reading and writing on small made files of every kind; each frame shows its own number as a bar code."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
import torch
from av.rational import AVRational
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import video
from core.video.__main__ import main
from core.video.info import rational
from core.video.transcoder import Job, _outcomes

HEIGHT, WIDTH, TOTAL, GOP = 48, 64, 90, 24


def numbered(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame with its number as eight black or white bars over a gradient that moves."""
    ramp = (np.arange(width)[None, :] * 2 + number * 3 + np.arange(height)[:, None]) % 128 + 64
    frame = np.repeat(ramp[:, :, None], 3, axis=2).astype(np.uint8)
    for bit in range(8):
        frame[: height // 2, bit * width // 8 : (bit + 1) * width // 8] = 255 * (number >> bit & 1)
    return frame


def numbers(frames: torch.Tensor) -> list[int]:
    """The numbers that frames show."""
    height, width = frames.shape[1:3]
    bars = frames[:, 4 : height // 2 - 4].float().mean((1, 3))
    middles = [(2 * bit + 1) * width // 16 for bit in range(8)]
    return [sum(1 << bit for bit, x in enumerate(middles) if row[x] > 128) for row in bars]


def encode(
    path: Path,
    codec: str = "libx264",
    *,
    stamps: Iterable[int] = range(TOTAL),
    rate: Fraction = Fraction(25),
    format: str | None = None,
    gop: int = GOP,
    rotation: int = 0,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    pixels: str = "yuv420p",
    **options: str,
) -> Path:
    """A video of numbered frames with these timestamps in units of 1 / rate."""
    with av.open(str(path), "w", format=format, container_options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = size
        stream.pix_fmt, stream.codec_context.gop_size = pixels, gop
        stream.codec_context.time_base = 1 / rate
        if rotation:
            stream.set_display_rotation(rotation)
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(numbered(number, *size), format="rgb24")
            frame.pts, frame.time_base = stamp, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(source: Path, path: Path, frames: int) -> Path:
    """A copy without re-encoding whose edit list hides the first frames."""
    with (
        av.open(str(source)) as old,
        av.open(str(path), "w", container_options={"avoid_negative_ts": "disabled", "movflags": "faststart"}) as new,
    ):
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        step = round(1 / (float(stream.average_rate) * float(stream.time_base)))
        for packet in old.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - frames * step, packet.dts - frames * step, copy
                new.mux(packet)
    return path


VFR = [n + n // 3 + (5 if n > 40 else 0) for n in range(TOTAL)]
MAKERS: dict[str, Callable[[Path], Path]] = {
    "b_frames.mp4": lambda path: encode(path, bf="3"),
    "no_b_frames.mov": lambda path: encode(path, bf="0"),
    "open_gop.mp4": lambda path: encode(path, **{"x264-params": "open-gop=1:keyint=24:bframes=3:scenecut=0"}),
    "open_gop.mkv": lambda path: encode(path, **{"x264-params": "open-gop=1:keyint=24:bframes=3:scenecut=0"}),
    "variable_rate.mp4": lambda path: encode(path, stamps=VFR),
    "starts_late.mp4": lambda path: encode(path, stamps=range(100, 100 + TOTAL)),
    "rotated.mp4": lambda path: encode(path, rotation=90),
    "odd_444.mp4": lambda path: encode(path, size=(49, 67), pixels="yuv444p"),
    "mpeg4.avi": lambda path: encode(path, "mpeg4", gop=12, b="900k"),
    "mpeg4_b_frames.avi": lambda path: encode(path, "mpeg4", gop=12, bf="2", b="900k"),
    "mpeg4_b_frames.mp4": lambda path: encode(path, "mpeg4", gop=12, bf="2", b="900k"),
    "motion_jpeg.avi": lambda path: encode(path, "mjpeg", pixels="yuvj420p"),
    "mpeg1.mpg": lambda path: encode(path, "mpeg1video", gop=12, bf="2", b="900k"),
    "transport.ts": lambda path: encode(path),
    "program.mpg": lambda path: encode(path, format="mpeg"),
    "raw.h264": lambda path: encode(path, format="h264"),
    "vp9.webm": lambda path: encode(path, "libvpx-vp9", deadline="realtime", **{"cpu-used": "8"}),
    "one_frame.mp4": lambda path: encode(path, stamps=[0]),
}
LENGTH = {"one_frame.mp4": 1, "edit_list.mp4": TOTAL - 30}
FIRST = {"edit_list.mp4": 30}
SEQUENTIAL = {"mpeg4_b_frames.avi", "mpeg1.mpg", "transport.ts", "program.mpg", "raw.h264"}
KINDS = sorted([*MAKERS, "edit_list.mp4"])


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one video of every kind."""
    folder = tmp_path_factory.mktemp("videos")
    for name, make in MAKERS.items():
        make(folder / name)
    cut(folder / "b_frames.mp4", folder / "edit_list.mp4", 30)
    return folder


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    video.close_all()


def everything(path: Path) -> torch.Tensor:
    """All frames by plain decoding in sequence."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames))


# -------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("name", KINDS)
def test_any_frames_in_any_order_equal_sequential_decoding(made: Path, name: str) -> None:
    path, total = made / name, LENGTH.get(name, TOTAL)
    truth = everything(path)
    assert video.probe(path).frames == len(truth) == total
    assert numbers(truth) == list(range(FIRST.get(name, 0), FIRST.get(name, 0) + total))
    rng = random.Random(name)
    orders = [
        [total - 1],
        [0],
        rng.choices(range(total), k=12),
        list(range(total))[::-1],
        list(range(total // 2, min(total // 2 + 20, total))),
        list(range(0, total, 4)),
        [total // 3] * 3,
    ]
    with video.Video(path) as one:
        for order in orders:
            expected = truth[torch.tensor(order)]
            assert torch.equal(one.read(order), expected)
            with video.Video(path) as fresh:
                assert torch.equal(fresh.read(order), expected)
        assert one.info.seekable == (name not in SEQUENTIAL)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_series_of_reads_on_an_open_file(made: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(KINDS))
    total, first = LENGTH.get(name, TOTAL), FIRST.get(name, 0)
    for _ in range(data.draw(st.integers(1, 4))):
        indices = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=12))
        assert numbers(video.read(made / name, indices)) == [first + index for index in indices]


def test_only_what_is_needed_is_decoded(made: Path) -> None:
    with video.Video(made / "b_frames.mp4") as reader:
        reader.read([TOTAL - 1])
        last_group = TOTAL - GOP * (TOTAL // GOP)
        assert reader._access is not None
        assert reader._access.source.decoded <= last_group
    with video.Video(made / "b_frames.mp4") as reader:
        for start in range(0, 20, 5):  # windows that follow each other go on where the last one ended
            reader.read(range(start, start + 5))
        assert reader._access is not None
        assert reader._access.source.decoded <= 20 + 8
    with video.Video(made / "b_frames.mp4") as reader:  # pictures that no other refers to are passed over
        reader.read([GOP - 1])
        assert reader._access is not None
        assert reader._access.source.decoded < GOP


def test_wrong_assumption_about_timestamps_is_noticed(made: Path) -> None:
    """An equidistant table with other timestamps in the packets: the packets win."""
    with video.Video(made / "variable_rate.mp4") as reader:
        access: Any = reader._opened()
        assert not access.index.assumed
    with video.Video(made / "b_frames.mp4") as reader:
        access = reader._opened()
        assert access.index.assumed
        step = access.index.pts.step
        access.index.pts = range(step, step + TOTAL * step, step)  # as if the first frame were shown one later
        assert numbers(reader.read([50, 3])) == [50, 3]
        assert not reader._opened().index.assumed  # type: ignore[union-attr]


def test_frames_outside_name_the_true_length(made: Path) -> None:
    for name in ("b_frames.mp4", "mpeg4.avi", "transport.ts"):
        with pytest.raises(
            video.FrameIndexError, match=f"frame {TOTAL} asked for, the video has {TOTAL} frames"
        ) as info:
            video.read(made / name, [0, TOTAL])
        assert isinstance(info.value, IndexError)
        assert isinstance(info.value, video.VideoError)
        with pytest.raises(video.FrameIndexError, match="frame -1 asked for"):
            video.read(made / name, [-1])
        assert numbers(video.read(made / name, [7])) == [7]


def test_no_frames_asked_none_given(made: Path) -> None:
    assert video.read(made / "b_frames.mp4", []).shape == (0, HEIGHT, WIDTH, 3)


def test_indices_may_be_tensors_and_numpy(made: Path) -> None:
    assert numbers(video.read(made / "b_frames.mp4", torch.tensor([4, 2]))) == [4, 2]
    assert numbers(video.read(made / "b_frames.mp4", np.array([4, 2]))) == [4, 2]


# ------------------------------------------------------------------------------------------------- facts and times


def test_probe_gives_plain_values(made: Path) -> None:
    info = video.probe(made / "b_frames.mp4")
    assert (info.frames, info.promised, info.height, info.width, info.rotation) == (TOTAL, TOTAL, HEIGHT, WIDTH, 0)
    assert (info.codec, info.audio, info.seekable, info.lost) == ("h264", False, True, 0)
    assert info.fps == 25
    assert info.duration_s == pytest.approx(TOTAL / 25)
    kinds = {type(getattr(info, name)) for name in info.__slots__}
    assert kinds == {int, float, str, bool}
    assert type(rational(AVRational(30000, 1001))) is Fraction
    assert rational(AVRational(30000, 1001)) == Fraction(30000, 1001)
    assert rational(None) == 0


def test_times_count_from_the_first_frame(made: Path) -> None:
    assert video.frame_times(made / "variable_rate.mp4") == pytest.approx([stamp / 25 for stamp in VFR])
    late = made / "starts_late.mp4"
    assert video.frame_times(late)[:2] == pytest.approx([0, 0.04])
    assert video.probe(late).start_s == pytest.approx(4)
    for name in ("transport.ts", "mpeg4_b_frames.avi", "raw.h264"):
        assert video.frame_times(made / name) == pytest.approx([n / 25 for n in range(TOTAL)], abs=1e-3)
        ticks = [time_s / video.probe(made / name).tick_s for time_s in video.frame_times(made / name)]
        assert ticks == pytest.approx([round(tick) for tick in ticks], abs=1e-6)


def test_reading_by_time(made: Path) -> None:
    path = made / "variable_rate.mp4"
    times = [stamp / 25 for stamp in VFR]
    assert numbers(video.read_times(path, times)) == list(range(TOTAL))
    assert numbers(video.read_times(path, [times[41] - 0.001, times[41] + 0.001, 0])) == [40, 41, 0]
    duration_s = video.probe(path).duration_s
    assert numbers(video.read_times(path, [duration_s])) == [TOTAL - 1]
    with pytest.raises(video.FrameIndexError, match=r"time 99 s asked for, the video lasts from 0 to"):
        video.read_times(path, [99])
    with pytest.raises(video.FrameIndexError, match="time -1 s"):
        video.read_times(path, [-1])


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.mkv", "starts_late.mp4", "transport.ts"])
def test_times_of_rounded_clocks_mean_their_frame(made: Path, name: str) -> None:
    assert numbers(video.read_times(made / name, [n / 25 for n in range(TOTAL)])) == list(range(TOTAL))


def test_reading_a_span(made: Path) -> None:
    path = made / "b_frames.mp4"  # 25 frames a second
    assert numbers(video.read_span(path, 1.0, 2.0)) == list(range(25, 50))
    assert numbers(video.read_span(path, 1.01, 1.09)) == [26, 27]
    assert numbers(video.read_span(path, 1.01, 1.03)) == [25]  # between two frames: the one on screen
    assert numbers(video.read_span(path, 3.4, 9.0)) == list(range(85, 90))
    assert numbers(video.read_span(path, 0.0, 2.0, fps=5)) == list(range(0, 50, 5))
    assert numbers(video.read_span(path, 3.2, 9.0, fps=10)) == [80, 82, 85, 87]
    assert video.read_span(path, 0, 1, fps=8, short_side=24).shape == (8, 24, 32, 3)
    with pytest.raises(ValueError, match="span from 2 to 2 s is empty"):
        video.read_span(path, 2, 2)
    with pytest.raises(video.FrameIndexError, match="time 5 s"):
        video.read_span(path, 5, 6)


def test_rotation_is_a_fact_and_an_option(made: Path) -> None:
    path = made / "rotated.mp4"
    assert video.probe(path).rotation == 90
    stored, upright = video.read(path, [3]), video.read(path, [3], rotate=True)
    assert stored.shape == (1, HEIGHT, WIDTH, 3)
    assert torch.equal(upright, stored.rot90(1, (1, 2)))


def test_short_side_scales_after_decoding(made: Path) -> None:
    path = made / "odd_444.mp4"
    full = video.read(path, range(40))
    small = video.read(path, range(40), short_side=24)
    assert small.shape == (40, 24, 67 * 24 // 49, 3)
    exact = torch.nn.functional.interpolate(
        full.permute(0, 3, 1, 2).float(), size=small.shape[1:3], mode="bilinear", antialias=True
    )
    assert (small - exact.permute(0, 2, 3, 1)).abs().max() <= 1
    assert video.read(path, [0], short_side=98).shape == (1, 98, 134, 3)
    with pytest.raises(ValueError, match="short_side=0"):
        video.read(path, [0], short_side=0)


# -------------------------------------------------------------------------------------------------- broken and odd


def test_unreadable_files_say_why(made: Path, tmp_path: Path) -> None:
    whole = (made / "b_frames.mp4").read_bytes()
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "text.avi").write_text("no video at all\n" * 50)
    (tmp_path / "no_index.mp4").write_bytes(whole[:32] + whole[whole.index(b"mdat") - 4 :][:2000])
    (tmp_path / "empty_folder").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    for name, reason in {
        "zero.mp4": "is empty",
        "text.avi": "is no video",
        "no_index.mp4": "has no index",
        "sound.mp4": "has no video stream, only audio",
        "absent.mp4": "cannot be found",
        "empty_folder": "holds no numbered pictures",
    }.items():
        for action in (video.probe, lambda path: video.read(path, [0])):
            with pytest.raises(video.VideoError, match=reason) as info:
                action(tmp_path / name)
            assert info.value.path == str(tmp_path / name)
            copy = pickle.loads(pickle.dumps(info.value))  # errors come out of worker processes
            assert (copy.path, copy.reason, str(copy)) == (info.value.path, info.value.reason, str(info.value))
    with pytest.raises(video.VideoError, match=r"has 1 video stream\(s\), number 1"):
        len(video.Video(made / "b_frames.mp4", stream=1))


def test_truncated_file_gives_what_is_there(made: Path, tmp_path: Path) -> None:
    whole = (made / "b_frames.mp4").read_bytes()
    path = tmp_path / "truncated.mp4"
    path.write_bytes(whole[: len(whole) * 7 // 10])
    info = video.probe(path)
    assert info.promised == TOTAL
    assert 10 < info.frames < TOTAL
    assert info.lost == 1
    order = list(range(info.frames))[::-1]
    assert torch.equal(video.read(path, order), video.read(made / "b_frames.mp4", order))
    with pytest.raises(video.FrameIndexError, match=f"the video has {info.frames} frames"):
        video.read(path, [TOTAL - 1])
    with pytest.raises(video.VideoError, match="copy or download the file again, or read it with strict=False"):
        video.read(path, [info.frames - 1], strict=True)


@pytest.mark.parametrize("name", ["b_frames.mp4", "mpeg4.avi"])
def test_damage_inside_reads_as_in_sequence(made: Path, tmp_path: Path, name: str) -> None:
    data = bytearray((made / name).read_bytes())
    rng = random.Random(0)
    with av.open(str(made / name)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in (packets[30], packets[55]):
        data[position + size // 3 : position + size // 3 + 40] = rng.randbytes(40)
    path = tmp_path / name
    path.write_bytes(data)
    with video.Video(path) as reader:
        truth = [frame.to_ndarray(format="rgb24") for frame in reader.frames()]
    for wanted in (list(range(25, 60)), [5, 80, 31, 60, 33, 45], list(range(80))[::-1]):
        with video.Video(path) as reader:
            assert np.array_equal(reader.read(wanted).numpy(), np.stack([truth[index] for index in wanted]))
    with pytest.raises(video.VideoError, match=r"damaged|decoded"):
        video.read(path, range(TOTAL), strict=True)
    assert numbers(video.read(path, range(20), strict=True)) == list(range(20))  # before the damage


def test_a_file_that_changes_is_opened_anew(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "changing.mp4"
    video.write(path, [numbered(n) for n in range(10)], 25)
    assert video.probe(path).frames == 10
    video.write(path, [numbered(n) for n in range(100, 120)], 25)
    assert video.probe(path).frames == 20
    assert numbers(video.read(path, [0, 19])) == [100, 119]


# ----------------------------------------------------------------------------------- processes, threads and memory


def test_readers_are_pickled_as_their_path(made: Path) -> None:
    reader = video.Video(made / "b_frames.mp4", threads=2)
    assert numbers(reader.read([5])) == [5]
    copy = pickle.loads(pickle.dumps(reader))
    assert copy._access is None
    assert numbers(copy.read([6])) == [6]
    reader.close()
    assert numbers(reader.read([7])) == [7]
    reader.close()


def read_in_child(readers: list[video.Reader], path: Path, found: Any) -> None:
    found.put([numbers(reader.read([11, 40])) for reader in readers] + [numbers(video.read(path, [12]))])


def test_a_forked_process_opens_anew(made: Path) -> None:
    path = made / "b_frames.mp4"
    readers: list[video.Reader] = [video.Video(path), video.Video(path, threads=2)]
    for reader in readers:
        assert numbers(reader.read([9, 10])) == [9, 10]  # open in the middle of the file, with and without threads
    assert numbers(video.read(path, [10])) == [10]
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    child = context.Process(target=read_in_child, args=(readers, path, found))
    child.start()
    child.join(60)
    alive = child.is_alive()
    if alive:
        child.kill()
    assert not alive, "the child hangs"
    assert found.get() == [[11, 40], [11, 40], [12]]
    assert [numbers(reader.read([11])) for reader in readers] == [[11], [11]]  # and the parent goes on
    for reader in readers:
        reader.close()


def test_threads_share_readers(made: Path) -> None:
    found: dict[int, list[int]] = {}

    def work(seed: int) -> None:
        rng = random.Random(seed)
        wanted = [rng.randrange(TOTAL) for _ in range(30)]
        names = [rng.choice(["b_frames.mp4", "mpeg4.avi"]) for _ in wanted]
        shown = [numbers(video.read(made / name, [index]))[0] for name, index in zip(names, wanted, strict=True)]
        found[seed] = [a - b for a, b in zip(shown, wanted, strict=True)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: [0] * 30 for seed in range(3)}


def test_memory_and_open_files_are_bounded(made: Path, tmp_path: Path) -> None:
    process = psutil.Process()
    paths = [made / name for name in KINDS if name not in SEQUENTIAL][:10]  # more than are kept open

    def work(rounds: int) -> None:
        for step in range(rounds):
            path = paths[step % len(paths)]
            video.read(path, [0, step % LENGTH.get(path.name, TOTAL)], short_side=32 if step % 2 else None)
            with pytest.raises(video.VideoError):
                video.read(path, [TOTAL + 1])

    work(100)
    memory, files = process.memory_info().rss, process.num_fds()
    work(500)
    grown = (process.memory_info().rss - memory) / 2**20
    assert grown < 8  # one leaked decoder is about a megabyte, 500 opened files would be hundreds
    assert process.num_fds() <= files + 8


# ---------------------------------------------------------------------------------------------- folders of pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from torchvision.io import write_jpeg

    folder = tmp_path / "P01_01"
    folder.mkdir()
    for number in range(1, 13):
        picture = torch.from_numpy(numbered(number)).permute(2, 0, 1)
        write_jpeg(picture, str(folder / f"frame_{number:010d}.jpg"), quality=95)
    return folder


def test_folder_of_pictures_reads_like_a_video(pictures: Path) -> None:
    info = video.probe(pictures)
    assert (info.frames, info.height, info.width, info.codec, info.lost) == (12, HEIGHT, WIDTH, "jpg", 0)
    assert numbers(video.read(pictures, [0, 11, 4, 4])) == [1, 12, 5, 5]
    assert video.read(pictures, [0, 1], short_side=24).shape == (2, 24, 32, 3)
    with pytest.raises(video.FrameIndexError, match="the folder has 12 frames"):
        video.read(pictures, [12])
    with pytest.raises(video.VideoError, match="no frame rate"):
        video.read_times(pictures, [0.5])
    with video.ImageFolder(pictures, fps=4) as reader:
        assert numbers(reader.read_times([0, 1.0])) == [1, 5]


def test_missing_and_damaged_pictures_are_named(pictures: Path) -> None:
    (pictures / "frame_0000000001.jpg").unlink()
    (pictures / "frame_0000000005.jpg").unlink()
    (pictures / "frame_0000000007.jpg").write_bytes(b"")
    assert video.probe(pictures).lost == 2
    assert numbers(video.read(pictures, [1, 11])) == [2, 12]  # nothing has moved up
    for index, reason in ((0, "01.jpg is missing"), (4, "05.jpg is missing"), (6, r"07.jpg is empty")):
        with pytest.raises(video.VideoError, match=reason):
            video.read(pictures, [1, index])


# ---------------------------------------------------------------------------------------------------------- writing


def test_written_frames_come_back(tmp_path: Path) -> None:
    frames = torch.from_numpy(np.stack([numbered(n) for n in range(40)]))
    for source in (frames, frames.numpy(), iter(frames), (frame for frame in frames.numpy())):
        path = video.write(tmp_path / "sub" / "clip.mp4", source, 30000 / 1001, crf=10)
        info = video.probe(path)
        assert (info.frames, info.codec, info.pixel_format) == (40, "h264", "yuv420p")
        assert info.fps == pytest.approx(30000 / 1001)
        again = video.read(path, range(40))
        assert numbers(again) == list(range(40))
        assert (again.float() - frames).abs().mean() < 6
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["clip.mp4"]


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    """Small frames are what x264 encodes differently from run to run when it is left to itself."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 255, (12, 8, 12, 3), generator=generator, dtype=torch.uint8)
    frames = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    made = []
    for number in range(20):
        ballast = torch.full((1000 + 7777 * number,), number)  # another state of the heap
        made.append(video.write(tmp_path / f"{number}.mp4", frames, 25).read_bytes())
        del ballast
    assert len(set(made)) == 1


def test_odd_sides_are_made_even_by_repeating_the_edge(tmp_path: Path) -> None:
    frame = numbered(3, 49, 67)
    path = video.write(tmp_path / "odd.mkv", [frame] * 3, 10, crf=5)
    again = video.read(path, [1])[0]
    assert again.shape == (50, 68, 3)
    assert np.abs(again[:49, :67].numpy().astype(int) - frame).mean() < 6
    assert (again[49].float() - again[48]).abs().mean() < 12


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    video.write(path, [numbered(1)] * 4, 10)
    before = path.read_bytes()

    def breaking() -> Iterator[np.ndarray]:
        yield from [numbered(1)] * 20
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        video.write(path, breaking(), 10)
    for frames, reason in (
        ([], "no frames"),
        ([numbered(1), numbered(1, 24, 32)], "frame 1 is 32x24, the first 64x48"),
        ([numbered(1).astype(np.float32)], r"expected uint8 \(H,W,3\)"),
        ([numbered(1)[..., 0]], r"expected uint8 \(H,W,3\)"),
    ):
        with pytest.raises(ValueError, match=reason):
            video.write(path, frames, 10)
    with pytest.raises(ValueError, match="fps=0"):
        video.write(path, [numbered(1)], 0)
    with pytest.raises(ValueError, match=r"videos are written as \.mp4, \.mov, \.mkv, not '\.gif'"):
        video.write(tmp_path / "clip.gif", [numbered(1)], 10)
    assert [left.name for left in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == before


# ------------------------------------------------------------------------------------------------------ transcoding


@pytest.fixture(scope="module")
def dataset(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of several kinds in a tree, one of them broken."""
    root = tmp_path_factory.mktemp("dataset")
    for name in ("a/mpeg4_b_frames.avi", "a/variable_rate.mp4", "b/rotated.mp4", "b/odd_444.mp4", "transport.ts"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes((made / Path(name).name).read_bytes())
    (root / "b" / "broken.mp4").write_bytes(b"x" * 100)
    (root / "b" / "notes.txt").write_text("not a video")
    return root


def test_an_odd_long_side_gets_a_black_column_or_row(dataset: Path, tmp_path: Path) -> None:
    """ffmpeg -vf "scale=32:32:force_original_aspect_ratio=increase,pad='iw+mod(iw,2)':'ih+mod(ih,2)'"."""
    files = [dataset / "a/variable_rate.mp4", dataset / "b/rotated.mp4"]
    done = video.transcode(files, tmp_path, short_side=32, crf=1, fit="pad", progress=False).done
    wide, tall = sorted(done, key=lambda path: video.probe(path).height)
    frames = video.read(wide, range(TOTAL))
    assert frames.shape == (TOTAL, 32, 44, 3)  # 64 / 48 of 32 is 42.67, so 43, so 44
    assert frames[:, :, -1].float().mean() < 30 < 60 < frames[:, :, -3].float().mean()
    assert numbers(frames) == list(range(TOTAL))
    frames = video.read(tall, range(TOTAL))
    assert frames.shape == (TOTAL, 44, 32, 3)
    assert frames[:, -1].float().mean() < 30 < 60 < frames[:, -3].float().mean()
    with pytest.raises(ValueError, match="fit=crop is not known; choose from round, pad"):
        video.transcode(files, tmp_path, short_side=32, fit="crop")  # type: ignore[arg-type]


def test_transcoding_makes_small_even_upright_videos(dataset: Path, tmp_path: Path) -> None:
    result = video.transcode(dataset, tmp_path, short_side=32, crf=12, progress=False)
    assert {path.relative_to(tmp_path).as_posix() for path in result.done} == {
        "a/mpeg4_b_frames.mp4",
        "a/variable_rate.mp4",
        "b/rotated.mp4",
        "b/odd_444.mp4",
        "transport.mp4",
    }
    assert {path.name: reason.split(" (")[0] for path, reason in result.failed.items()} == {
        "broken.mp4": "is no video that FFmpeg can read"
    }
    assert sorted(tmp_path.rglob("*.*")) == result.done  # nothing partial
    for path in result.done:
        info = video.probe(path)
        upright = path.name == "rotated.mp4"
        wide = 44 if path.name == "odd_444.mp4" else 42  # 67 / 49 and 64 / 48 of 32, rounded to even numbers
        assert (info.height, info.width) == ((wide, 32) if upright else (32, wide))
        assert (info.frames, info.rotation, info.codec, info.audio) == (TOTAL, 0, "h264", False)
        frames = video.read(path, range(TOTAL))
        assert numbers(frames.rot90(-1, (1, 2)) if upright else frames) == list(range(TOTAL))
    assert video.frame_times(tmp_path / "a/variable_rate.mp4") == pytest.approx([stamp / 25 for stamp in VFR])
    times = [path.stat().st_mtime_ns for path in result.done]
    again = video.transcode(dataset, tmp_path, short_side=32, progress=False)
    assert (again.done, sorted(again.skipped)) == ([], result.done)
    assert [path.stat().st_mtime_ns for path in result.done] == times
    assert list(again.failed) == list(result.failed)


def test_transcoding_in_processes(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    files = [dataset / "a" / "variable_rate.mp4", dataset / "b" / "broken.mp4", dataset / "transport.ts"]
    result = video.transcode(files, tmp_path, short_side=24, workers=2, progress=False)
    assert [path.name for path in result.done] == ["transport.mp4", "variable_rate.mp4"]
    assert [path.name for path in result.failed] == ["broken.mp4"]


class Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_a_killed_worker_is_blamed_on_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = Job(Deadly(), tmp_path / "b.mp4", 32, 23, "veryfast", 32)  # type: ignore[arg-type]
    ((blamed, reason),) = _outcomes([job], workers=2)
    assert blamed == job
    assert "its worker process died" in str(reason)


def test_leftovers_of_killed_processes_go(made: Path, tmp_path: Path) -> None:
    import socket

    gone = tmp_path / f".b_frames.{socket.gethostname()}-999999999.part.mp4"
    other = tmp_path / f".b_frames.{socket.gethostname()}-{os.getppid()}.part.mp4"
    gone.write_bytes(b"partial")
    other.write_bytes(b"another job is at it")
    video.transcode(made / "b_frames.mp4", tmp_path, short_side=32, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "b_frames.mp4"]


def test_transcoding_refuses_what_cannot_work(made: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="short_side=33: h264"):
        video.transcode(dataset, tmp_path, short_side=33)
    with pytest.raises(ValueError, match="there are no videos"):
        video.transcode(tmp_path, tmp_path / "out", short_side=32)
    with pytest.raises(ValueError, match="from several sources"):
        video.transcode([made / "mpeg4_b_frames.avi", made / "mpeg4_b_frames.mp4"], tmp_path, short_side=32)
    with pytest.raises(ValueError, match="over itself"):
        video.transcode(made / "b_frames.mp4", made, short_side=32)


# --------------------------------------------------------------------------------------------------------- commands


def test_commands(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "transcode SOURCE OUT_DIR" in capsys.readouterr().out
    assert main(["probe", str(dataset / "a" / "variable_rate.mp4"), str(dataset / "b" / "broken.mp4")]) == 1
    out = capsys.readouterr().out
    assert f"{TOTAL} frames" in out
    assert "broken.mp4: ERROR is no video" in out
    assert main(["transcode", str(dataset), str(tmp_path), "short_side=32", "crf=30"]) == 1
    out = capsys.readouterr().out
    assert "5 written, 0 were there already, 1 failed" in out
    assert "broken.mp4: is no video" in out
    for words, reason in (
        (["probe"], "probe needs files"),
        (["resize"], "'resize' is no command; choose from probe, check, transcode"),
        (["transcode", "a", "b"], "transcode needs SOURCE OUT_DIR short_side=N"),
        (["transcode", "a", "b", "side=3"], "side= is no option here; known are short_side="),
        (["transcode", "a", "b", "short_side=many"], "short_side=many is not a valid value"),
    ):
        assert main(words) == 2
        assert reason in capsys.readouterr().err


def test_check_lists_the_broken_and_the_odd(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(dataset)]) == 1
    lines = {line.split()[0].split("/")[-1]: line for line in capsys.readouterr().out.splitlines() if "/" in line}
    assert "BROKEN" in lines["broken.mp4"]
    assert "rotated by 90 degrees" in lines["rotated.mp4"]
    assert "odd size 67x49" in lines["odd_444.mp4"]
    assert "variable frame rate" in lines["variable_rate.mp4"]
    assert "only be read in sequence" in lines["transport.ts"]
    assert "notes.txt" not in lines
