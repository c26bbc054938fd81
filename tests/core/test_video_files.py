"""Real clips of every kind: random access gives the frames of full sequential decoding, or says what is wrong."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core import clips as choose
from core import video
from tests.support import Case, cases

(CASE,) = cases("ucf50_x3d", "video_frames")
FACTS: dict[str, dict[str, Any]] = CASE.json("files.json")
DECODED = [name for name, facts in FACTS.items() if facts.get("frames")]
REFUSED = sorted(set(FACTS) - set(DECODED))
HEADER_RIGHT = [name for name in DECODED if not FACTS[name]["error"] and not FACTS[name]["corrupt_flagged"]]


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    return CASE.expected


def luma(frame: Any) -> int:
    """crc32 of the first plane, rows tightly packed."""
    plane = frame.planes[0]
    width = frame.width * (2 if frame.format.name.endswith("10le") else 1)
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, :width]
    return zlib.crc32(np.ascontiguousarray(rows).tobytes())


def read_luma(reader: video.Video, numbers: list[int]) -> list[int]:
    """The luma of frames, by the path on which `read` gets them."""
    wanted = sorted(set(numbers))
    found: list[int] = []
    reader._each(wanted, found.clear, lambda frame: found.append(luma(frame)))
    by_number = dict(zip(wanted, found, strict=True))
    return [by_number[number] for number in numbers]


@pytest.mark.golden
@pytest.mark.parametrize("name", DECODED)
def test_random_access_equals_sequential_decoding(clips: Path, truth: dict[str, np.ndarray], name: str) -> None:
    facts = FACTS[name]
    expected = [int(crc) for crc in truth[f"{facts['id']}/crc"]]
    total = len(expected)
    rng = random.Random(name)
    reads = [
        [total - 1],
        [0],
        rng.sample(range(total), min(total, 8)),  # any order
        choose.uniform(total, 16),
        choose.strided(total // 2, 16, 4, total),  # repeats the last frame
        list(range(total // 3, min(total // 3 + 24, total))),
        list(range(max(0, total - 16), total)),
    ]
    with video.Video(clips / name) as reader:
        for numbers in reads:
            assert read_luma(reader, numbers) == [expected[number] for number in numbers], numbers
        everything = list(range(total))[::-1]
        assert read_luma(reader, everything) == [expected[number] for number in everything]
    with video.Video(clips / name) as reader:
        for start in rng.sample(range(total), min(total, 3)):  # of a file just opened
            assert read_luma(reader, [start]) == [expected[start]]
            reader.close()


@pytest.mark.golden
@pytest.mark.parametrize("name", HEADER_RIGHT)
def test_facts_of_healthy_files(clips: Path, truth: dict[str, np.ndarray], name: str) -> None:
    facts = FACTS[name]
    with video.Video(clips / name) as reader:
        info, times = reader.info, reader.times()
    assert (info.frames, info.width, info.height) == (facts["frames"], facts["w"], facts["h"])
    assert (info.rotation, info.codec, info.promised) == (facts["rotation"][0], facts["codec"], facts["header_frames"])
    pts = truth[f"{facts['id']}/pts"]
    if facts["monotone"] and not facts["pts_none"]:
        above, below = (int(part) for part in facts["time_base"].split("/"))
        stamps = pts[0] + pts[1] * np.arange(pts[2]) if len(pts) == 3 != info.frames else pts
        assert times == pytest.approx(list((stamps - stamps[0]) * above / below), abs=1e-9)
    else:
        assert len(times) == info.frames
        assert times == sorted(times)


@pytest.mark.golden
@pytest.mark.parametrize("name", REFUSED)
def test_files_that_hold_no_frames_are_refused(clips: Path, name: str) -> None:
    with pytest.raises(video.VideoError, match=r"empty|no video|no index") as error:
        video.read(clips / name, [0])
    assert error.value.path == str(clips / name)


@pytest.mark.golden
def test_whole_clips_as_the_reference_reads_them(clips: Path) -> None:
    """RGB of all frames, bit for bit where FFmpeg's converter is the one of the golden run; else their means."""
    (golden,) = cases("ucf50_x3d", "pipeline_clips")
    means = golden.expected
    for number, facts in enumerate(golden.json("clips.json")):
        frames = video.read(clips / "ucf50" / facts["file"], range(facts["frames"])).numpy()
        if zlib.crc32(frames.tobytes()) != facts["rgb_crc32_all"]:
            found = frames.reshape(len(frames), -1).mean(1)
            assert np.abs(found - means[f"clip{number}/frame_means"]).max() <= 0.2, facts["file"]


@pytest.mark.golden
def test_picture_folder_of_epic_kitchens(clips: Path) -> None:
    folder = clips / "other" / "epic_rgb_frames" / "P01" / "rgb_frames" / "P01_01"
    info = video.probe(folder)
    assert (info.frames, info.height, info.width, info.lost) == (100, 256, 456, 0)
    (golden,) = cases("ucf50_x3d", "ek100_frames")
    frames = video.read(folder, range(7, 100))  # row 0: frames 8 to 202, of which 100 are there
    means = golden.expected["0/frame_means"]
    assert frames.float().mean((1, 2, 3)).numpy() == pytest.approx(means, abs=0.05)
    with pytest.raises(video.FrameIndexError, match="the folder has 100 frames"):
        video.read(folder, [100])


def test_golden_facts_are_complete() -> None:
    """The lists that the tests above run over hold what the case describes."""
    assert isinstance(CASE, Case)
    assert len(DECODED) + len(REFUSED) == len(FACTS)
    assert len(DECODED) > 100
    assert len(REFUSED) == 4
