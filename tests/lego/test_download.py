"""Archives in several parts, unpacking, the list of what is published, and the sheets of a user study."""

from __future__ import annotations

import csv
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from projects.lego import archives, download, study


def split(folder: Path, contents: dict[str, bytes], size: int) -> Path:
    """x.zip with the parts x.z01, ... of `size` bytes beside it, as archivers write them; returns x.zip."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "whole.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    data = whole.read_bytes()
    whole.unlink()
    end = data.rfind(b"PK\x05\x06")
    entries, length, table = struct.unpack("<H2L", data[end + 10 : end + 20])
    body = data[:table]
    cuts = list(range(0, len(body), size))
    parts = [body[cut : cut + size] for cut in cuts]
    lines, at = [], table
    for _ in range(entries):
        head = list(struct.unpack("<4s6H3L5H2L", data[at : at + 46]))
        rest = data[at + 46 : at + 46 + sum(head[10:13])]
        head[13], head[16] = head[16] // size, head[16] % size
        lines.append(struct.pack("<4s6H3L5H2L", *head) + rest)
        at += 46 + len(rest)
    contents_table = b"".join(lines)
    assert len(contents_table) == length
    last = len(parts) - 1
    numbers = (last, last, entries, entries, length, len(parts[-1]), 0)
    parts[-1] += contents_table + struct.pack("<4s4H2LH", b"PK\x05\x06", *numbers)
    for number, part in enumerate(parts[:-1], 1):
        (folder / f"x.z{number:02d}").write_bytes(part)
    (folder / "x.zip").write_bytes(parts[-1])
    return folder / "x.zip"


@given(
    contents=st.dictionaries(st.text("abc/", min_size=1, max_size=4).filter(lambda n: not n.endswith("/")),
                             st.binary(max_size=300), min_size=1, max_size=6),
    size=st.integers(40, 400),
)  # fmt: skip
def test_parts_are_read_as_one(tmp_path_factory, contents: dict[str, bytes], size: int) -> None:
    path = split(tmp_path_factory.mktemp("zip"), contents, size)
    with archives.open_parts(path) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == contents
        assert archive.testzip() is None


def test_unpacking_may_be_repeated_and_stays_inside(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(5000)
    path = split(tmp_path / "in", {"a/b.npy": noise, "c.json": b"{}"}, 2000)
    out = tmp_path / "out"
    assert "2 files unpacked" in download.unpack(path, out)
    assert (out / "a" / "b.npy").read_bytes() == noise
    (out / "c.json").write_bytes(b"")
    assert "1 files unpacked" in download.unpack(path, out)
    (tmp_path / "in" / "x.z02").unlink()
    with pytest.raises(ValueError, match=r"x\.zip is the last of 3 parts; put x\.z02 beside it"):
        download.unpack(path, out)
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("../outside", b"x")
    with pytest.raises(ValueError, match="would be written outside"):
        download.unpack(evil, out)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.zip: damaged, or no zip archive"):
        download.unpack(tmp_path / "text.zip", out)
    with pytest.raises(ValueError, match="no such file"):
        archives.open_parts(tmp_path / "nowhere.zip")


def test_the_list_names_everything_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert download.main([]) == 0
    text = capsys.readouterr().out
    assert "bolinlai/LEGO-Ego4D" in text
    assert "egovlp.pth" in text
    with pytest.raises(SystemExit, match="2"):
        download.main(["fetch", "LEGO-Ego4d"])
    assert "LEGO-Ego4d is not known here; there are LEGO-Ego4D" in capsys.readouterr().err


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Six actions, and frames of two methods: white ones and black ones."""
    entries: dict[str, dict] = {"c": {}}
    for k in range(6):
        entries["c"][str(k)] = {"image_0": f"c/{k}/0.jpg", "image_1": f"c/{k}/1.jpg", "action": f"cut {k}"}
        frame = tmp_path / "EgoGen" / "ego4d.fho" / "val" / "c" / str(k) / "0.jpg"
        for path, color in [(frame, 128), *((tmp_path / name / "images" / "c" / str(k) / "1.jpg", shade)
                                            for name, shade in (("ours", 255), ("theirs", 0)))]:  # fmt: skip
            path.parent.mkdir(parents=True)
            Image.new("RGB", (16, 12), (color,) * 3).save(path)
    (tmp_path / "ego4d_val.json").write_text(json.dumps(entries))
    return tmp_path


def test_a_study_hides_the_methods_and_counts_votes(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = pairs / "study"
    config = "projects/lego/configs/ego4d_ldm.yaml"
    arguments = [config, str(out), f"ours={pairs / 'ours'}", f"theirs={pairs / 'theirs'}", f"data.root={pairs}"]
    study.main([*arguments, "--count", "5"])
    page = (out / "study.html").read_text()
    assert "ours" not in page
    assert page.count("<img") == 15
    key = list(csv.DictReader((out / "key.csv").open()))
    assert len(key) == 5
    assert {row["A"] for row in key} == {"ours", "theirs"}
    votes = [["item", "choice"]]
    votes += [[row["item"], ("A" if row["A"] == "ours" else "b") if k < 4 else ("B" if row["A"] == "ours" else "A")]
              for k, row in enumerate(key)]  # fmt: skip
    with (pairs / "votes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(votes)
    assert study.main([config, str(out), "--votes", str(pairs / "votes.csv")]) == {"ours": 0.8, "theirs": 0.2}
    assert "80.00% of 5 votes" in capsys.readouterr().out
    with (pairs / "votes.csv").open("a") as file:
        file.write("99,A\n")
    with pytest.raises(SystemExit, match="2"):
        study.main([config, str(out), "--votes", str(pairs / "votes.csv")])
    assert "line 7: item '99' with choice 'A' is unknown" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        study.main(arguments[:3] + arguments[4:])
    assert "two methods or more" in capsys.readouterr().err
