"""The csv files and the splits: the original's to the byte, ours without a leak."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projects.ucf50_x3d import splits
from projects.ucf50_x3d.splits import Row
from tests.support import SHARED, cases

BUILD = cases("ucf50_x3d", "annotations_build*")
SPLIT = cases("ucf50_x3d", "split*")
FILES = ("actions_label.csv", "annotations.csv", "train_annotations.csv", "val_annotations.csv", "test_annotations.csv")


@pytest.mark.golden
@pytest.mark.parametrize("case", BUILD, ids=lambda case: case.path.name)
def test_annotation_files_equal_the_originals(case, tmp_path):
    rows = splits.rows_of((case.path / "listing.txt").read_text().split("\n")[:-1])
    splits.write(rows, splits.split_rows(rows, "random"), tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (case.path / name).read_bytes(), name


@pytest.mark.golden
@pytest.mark.parametrize("case", SPLIT, ids=lambda case: case.path.name)
def test_random_split_positions(case):
    with np.load(case.path / "positions.npz") as file:
        wanted = dict(file)
    parts = dict(zip(("train", "val", "test"), splits.random_split(6681), strict=True))
    for name, positions in wanted.items():
        assert parts[name] == positions.tolist()


@pytest.mark.golden
@pytest.mark.parametrize("case", SPLIT, ids=lambda case: case.path.name)
def test_random_split_of_other_sizes_and_ratios(case):
    expected = case.json()
    for entry in expected["small"] + expected["ratios"]:
        shares = {key: entry[key] for key in ("seed", "held_out", "test_of_held_out") if key in entry}
        for name, part in zip(splits.SPLITS, splits.random_split(entry["n"], **shares), strict=True):
            wanted = entry[name]
            if wanted and isinstance(wanted[0], list):  # of long splits the first positions and the length
                assert len(part) == wanted[1]
                wanted, part = wanted[0], part[: len(wanted[0])]
            assert part == wanted, entry


@pytest.mark.golden
def test_the_shipped_files_are_reproduced(tmp_path):
    folder = SHARED / "data" / "ucf50"
    if not folder.is_dir():
        pytest.skip("needs the original's annotation files, which are not ours to publish (../shared/data/ucf50)")
    rows = splits.read_rows(folder / "annotations.csv")
    shuffled = [f"{row.action}/{row.video_name}" for row in rows]
    np.random.default_rng(0).shuffle(shuffled)
    assert splits.rows_of(shuffled) == rows
    splits.write(rows, splits.split_rows(rows, "random"), tmp_path)
    digests = SPLIT[0].json()["sha256"]
    for name in FILES:
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digests[name], name
    split = splits.read_files(folder)
    assert (len(split.classes), len(split.train), len(split.val), len(split.test)) == (50, 4676, 1002, 1003)
    assert (round(split.leaks("val") * 1002), round(split.leaks("test") * 1003)) == (996, 997)


def _rows(sizes: dict[str, list[int]]) -> list[Row]:
    return splits.rows_of(
        f"{action}/v_{action}_g{group:02d}_c{clip:02d}.avi"
        for action, clips in sizes.items()
        for group, count in enumerate(clips, 1)
        for clip in range(1, count + 1)
    )


@given(
    st.dictionaries(
        st.sampled_from("ABCDEF"), st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=1, max_size=5
    ),
    st.integers(0, 5),
)
def test_grouped_split_never_leaks_and_covers_every_class(sizes, seed):
    rows = _rows(sizes)
    parts = splits.grouped_split(rows, seed=seed)
    assert sorted(itertools.chain(*parts)) == list(range(len(rows)))
    groups = [{rows[i].group for i in part} for part in parts]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    for action, clips in sizes.items():
        present = [any(rows[i].action == action for i in part) for part in parts]
        assert present == [True, len(clips) >= 3, len(clips) >= 2]


def test_grouped_split_of_25_groups_has_the_asked_shares():
    parts = splits.grouped_split(_rows({c: [4] * 25 for c in "ABCD"}))
    assert [len(part) for part in parts] == [4 * 4 * 17, 4 * 4 * 4, 4 * 4 * 4]


def test_folds_partition_the_groups():
    rows = _rows({"A": [1] * 27, "B": [2] * 25})
    tested = []
    for fold in range(1, 26):
        train, val, test = splits.fold_split(rows, fold)
        assert sorted(train + val + test) == list(range(len(rows)))
        assert {splits.group_number(rows[i].video_name) % 25 for i in test} == {fold % 25}
        tested += test
    assert sorted(tested) == list(range(len(rows)))
    with pytest.raises(ValueError, match=r"fold 26 is not in 1\.\.25"):
        splits.fold_split(rows, 26)


@given(st.integers(2, 300), st.integers(0, 3))
def test_random_split_is_a_partition_with_the_sizes_of_the_rule(count, seed):
    parts = splits.random_split(count, seed=seed)
    held = math.ceil(count * 0.3)
    assert sorted(itertools.chain(*parts)) == list(range(count))
    assert [len(p) for p in parts] == [count - held, held - math.ceil(held / 2), math.ceil(held / 2)]


def test_class_comes_from_the_folder_not_from_the_file_name(tmp_path):
    for entry in ("Billiards/v_Billards_g01_c01.avi", "JumpRope/v_JumpRope_g01_c01.avi", "JumpingJack/a.mp4"):
        (tmp_path / entry).parent.mkdir()
        (tmp_path / entry).touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "Empty").mkdir()
    assert [(r.action, r.label) for r in splits.scan(tmp_path)] == [
        ("Billiards", 0),
        ("JumpingJack", 1),
        ("JumpRope", 2),
    ]


def test_missing_folder_and_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        splits.scan(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no class folder with videos"):
        splits.scan(tmp_path)
    path = tmp_path / "annotations.csv"
    path.write_text("video_name,action\na.avi,A\n")
    with pytest.raises(ValueError, match=r"annotations.csv: column action_label is missing"):
        splits.read_rows(path)
    path.write_text("video_name,action,action_label\na.avi,A,x\n")
    with pytest.raises(ValueError, match=r"annotations.csv, line 2"):
        splits.read_rows(path)


def test_ucf101_lists_hold_out_validation_groups(tmp_path):
    rows = _rows({"A": [2] * 6, "B": [2] * 6})
    names = [f"{row.action}/{row.video_name}" for row in rows]
    (tmp_path / "trainlist01.txt").write_text("".join(f"{n} {1 + (n[0] == 'B')}\n" for n in names if "g01" not in n))
    (tmp_path / "testlist01.txt").write_text("".join(f"{n}\n" for n in names if "g01" in n))
    split = splits.read_lists(tmp_path, 1, rows)
    assert len(split.test) == 4
    assert len(split.val) == 4
    assert len(split.train) == 16
    assert split.leaks("test") == split.leaks("val") == 0
    assert len(splits.read_lists(tmp_path, 1, rows, val_share=0).train) == 20
    with pytest.raises(ValueError, match=r"trainlist02.txt does not exist"):
        splits.read_lists(tmp_path, 2, rows)


def test_command_writes_files_and_says_that_the_random_split_leaks(tmp_path, capsys):
    for row in _rows({"A": [4, 4, 4], "B": [4, 4, 4]}):
        path = tmp_path / "set" / row.action / row.video_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    splits.main([str(tmp_path / "set"), str(tmp_path / "out"), "--protocol", "random"])
    assert "this split leaks" in capsys.readouterr().out
    splits.main([str(tmp_path / "set"), str(tmp_path / "out")])
    assert "leaks" not in capsys.readouterr().out
    assert splits.read_files(tmp_path / "out").leaks("test") == 0
    with pytest.raises(SystemExit, match="does not exist"):
        splits.main([str(tmp_path / "no"), str(tmp_path / "out")])
