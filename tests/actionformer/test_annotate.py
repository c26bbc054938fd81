"""Annotations of several forms become the one that training reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import video
from projects.actionformer import annotate
from projects.actionformer.annotate import convert, seconds
from projects.actionformer.annotations import Action, Annotations, Video, read_annotations, write_annotations
from tests.support import SHARED


def table(root: Path, text: str, name: str = "actions.csv") -> Path:
    path = root / name
    path.write_text(text)
    return path


def annotated(root: Path, *arguments: str) -> Annotations:
    out = root / "out.json"
    annotate.main([*arguments, str(out)])
    return read_annotations(out)


PLAIN = "video,start,end,label\nb.mp4,1.5,3,run\na,0:01:02.5,1:10,jump\nb.mp4,4,5,jump\nc,,,\n"


def test_a_plain_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = annotated(tmp_path, str(table(tmp_path, PLAIN)))
    assert list(found.videos) == ["b", "a", "c"]
    assert found.videos["b"].actions == (Action("run", 1, 1.5, 3.0), Action("jump", 0, 4.0, 5.0))
    assert found.videos["a"].actions == (Action("jump", 0, 62.5, 70.0),)
    assert found.videos["c"].actions == ()
    assert dict(found.label_ids) == {"run": 1, "jump": 0}
    said = capsys.readouterr().out
    assert "3 videos, 3 actions of 2 classes; 3 training" in said
    assert "the duration of 3 videos is not known" in said
    assert "there is one subset only" in said


@pytest.mark.parametrize(
    "text",
    [
        "Video_ID;Start_Time;Stop;Class\nb;1.5;3;run\n",
        "filename\tt-start\tt-end\taction\nb.avi\t1.5\t3\trun\n",
        "\ufeffvideo, begin, end, event\nb,1.5,3,run\n",
        "video,start_frame,stop_frame,label\nb,45,90,run\n",
    ],
)
def test_columns_have_many_names(tmp_path: Path, text: str) -> None:
    found = annotated(tmp_path, "--fps", "30", str(table(tmp_path, text)))
    assert found.videos["b"].actions == (Action("run", 0, 1.5, 3.0),)


def test_subsets_come_from_a_column_or_from_the_command(tmp_path: Path) -> None:
    first = table(tmp_path, "video,start,end,label,subset\na,0,1,run,Validation\nb,0,1,run,\n")
    second = table(tmp_path, "video,start,end,label\nc,0,1,run\n", "more.csv")
    found = annotated(tmp_path, str(first), f"Test={second}")
    assert {name: entry.subset for name, entry in found.videos.items()} == {
        "a": "validation", "b": "training", "c": "test",
    }  # fmt: skip


def test_a_share_is_held_out_and_stays_held_out(tmp_path: Path) -> None:
    lines = [f"v{k},0,1,run" for k in range(200)]
    path = table(tmp_path, "video,start,end,label\n" + "\n".join(lines))
    videos = convert([("", path)], validation=0.25)
    held = {entry.id for entry in videos if entry.subset == "validation"}
    assert 30 < len(held) < 70
    fewer = table(tmp_path, "video,start,end,label\n" + "\n".join(lines[::2]), "half.csv")
    again = {entry.id for entry in convert([("", fewer)], validation=0.25) if entry.subset == "validation"}
    assert again == held & {f"v{k}" for k in range(0, 200, 2)}


def test_without_an_end_an_action_is_a_point(tmp_path: Path) -> None:
    found = annotated(tmp_path, str(table(tmp_path, "video,time,label\na,2.5,snap\n")))
    assert found.videos["a"].actions == (Action("snap", 0, 2.5, 2.5),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,0,1,run\n", "must name the columns; there is none for video, label, start"),
        ("video,start,end,label\na,x,1,run\n", "line 2: could not convert"),
        ("video,start,end,label\na,0,1,run\na,5,4,run\n", r"line 3: it ends at 4 s, before it starts \(5 s\)"),
        ("video,start,end,label\na,-1,4,run\n", "line 2: -1 is no time"),
        ("video,start,end,label\na,nan,4,run\n", "line 2: nan is no time"),
        ("video,start,end,label\n,1,4,run\n", "line 2: it names no video"),
        ("video,start,end,label\na,,4,run\n", "line 2: it has no start"),
        ("video,start_frame,end_frame,label\na,1,4,run\n", "line 2: times are frame numbers: .* --fps"),
        ("video,start,end,label,subset\na,1,4,run,x\na,1,4,run,y\n", "line 3: video a is in x and in y"),
        ("video_id,start_timestamp,stop_timestamp,verb,verb_class\na,0,1,take,0\n", "--label verb or --label noun"),
    ],
)
def test_a_table_that_cannot_be_understood_is_explained(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        convert([("", table(tmp_path, text))])


def test_the_command_ends_with_the_problem(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*none.csv: no such file"):
        annotate.main([str(tmp_path / "none.csv"), str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


@given(st.floats(0, 1e5).map(lambda value: round(value, 3)))
def test_times_of_the_clock_are_seconds(value: float) -> None:
    hours, minutes, rest = int(value // 3600), int(value // 60 % 60), value % 60
    assert seconds(f"{hours}:{minutes:02d}:{rest:06.3f}") == pytest.approx(value, abs=1e-3)
    assert seconds(str(value)) == pytest.approx(value, abs=1e-4)


# ----------------------------------------------------------------------------------------------------------------- ids


def test_classes_may_be_given_in_their_order(tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("run\nswim\njump\n")
    found = annotated(tmp_path, "--classes", str(names), str(table(tmp_path, PLAIN)))
    assert dict(found.label_ids) == {"run": 0, "jump": 2}
    (tmp_path / "classes.json").write_text('["jump"]')
    with pytest.raises(SystemExit, match=r"not among the 1 classes: run"):
        annotated(tmp_path, "--classes", str(tmp_path / "classes.json"), str(table(tmp_path, PLAIN)))
    again = annotated(tmp_path, "--classes", str(tmp_path / "out.json"), str(table(tmp_path, PLAIN)))
    assert dict(again.label_ids) == {"run": 0, "jump": 2}


@pytest.mark.parametrize(
    ("given", "ids"),
    [((None, None), (1, 0)), ((0, 1), (0, 1)), ((1, 2), (0, 1)), ((1, 5), (1, 5)), ((7, 3), (7, 3))],
)
def test_ids_count_from_zero(tmp_path: Path, given: tuple[Any, Any], ids: tuple[int, int]) -> None:
    actions = [
        {"label": label, "segment": [0, 1], "label_id": k} for label, k in zip(("run", "jump"), given, strict=True)
    ]
    path = table(tmp_path, json.dumps({"database": {"a": {"subset": "training", "annotations": actions}}}), "a.json")
    found = annotated(tmp_path, str(path))
    assert dict(found.label_ids) == {"run": ids[0], "jump": ids[1]}


def test_activitynet_json_gets_label_ids(tmp_path: Path) -> None:
    database = {
        "x": {"duration": 82.7, "subset": "training", "annotations": [{"segment": [6, 15.5], "label": "Zumba"}]},
        "y": {"duration": 9, "subset": "testing", "annotations": []},
        "z": {"duration": 20, "subset": "validation", "annotations": [{"segment": [1, 2], "label": "Archery"}]},
    }  # fmt: skip
    found = annotated(tmp_path, str(table(tmp_path, json.dumps({"database": database, "taxonomy": []}), "anet.json")))
    assert found.videos["x"] == Video("x", "training", 82.7, None, None, (Action("Zumba", 1, 6.0, 15.5),))
    assert found.subsets() == {"training": 1, "testing": 1, "validation": 1}
    with pytest.raises(ValueError, match=r"bad.json: .*expected .*database"):
        convert([("", table(tmp_path, '{"database": {"x": {"annotations": [{}]}}}', "bad.json"))])


# ------------------------------------------------------------------------------------------------------- epic and facts

EPIC = (
    "narration_id,video_id,start_timestamp,stop_timestamp,start_frame,stop_frame,verb,verb_class,noun,noun_class\n"
    "P01_01_0,P01_01,00:00:00.14,00:00:03.37,8,202,open,3,door,3\n"
    "P01_01_1,P01_01,00:00:04.37,00:01:06.17,262,370,turn-on,6,light,114\n"
    "P02_01_1,P02_01,00:00:04.37,00:00:06.17,262,370,unlock,3,door,3\n"
)


def test_epic_tables_give_verbs_or_nouns(tmp_path: Path) -> None:
    path = table(tmp_path, EPIC, "EPIC_100_train.csv")
    (tmp_path / "EPIC_100_video_info.csv").write_text(
        "video_id,duration,fps,resolution\nP01_01,1652.1,59.94,1920x1080\n"
    )
    verbs = annotated(tmp_path, "--label", "verb", f"training={path}")
    assert verbs.videos["P01_01"].actions == (Action("open", 3, 0.14, 3.37), Action("turn-on", 6, 4.37, 66.17))
    assert verbs.videos["P02_01"].actions == (Action("open", 3, 4.37, 6.17),)  # its class, by the first narration
    assert (verbs.videos["P01_01"].duration_s, verbs.videos["P01_01"].fps) == (1652.1, 59.94)
    (tmp_path / "EPIC_100_noun_classes.csv").write_text("id,key\n3,cupboard\n114,light\n")
    nouns = annotated(tmp_path, "--label", "noun", str(path))
    assert dict(nouns.label_ids) == {"cupboard": 3, "light": 114}


def test_the_official_epic_tables(tmp_path: Path) -> None:
    folder = SHARED / "data" / "epic_kitchens100"
    if not folder.is_dir():
        pytest.skip("needs the EPIC-KITCHENS-100 annotations, which are not ours to publish")
    (entry, *_), *_ = [videos := convert([("validation", folder / "EPIC_100_validation.csv")], label="verb")]
    assert len(videos) == 138
    assert sum(len(each.actions) for each in videos) == 9668
    assert entry.id == "P01_11"
    assert entry.actions[1] == Action("put", 1, 1.56, 2.45)
    assert max(action.label_id for each in videos for action in each.actions) <= 96


def test_durations_come_from_videos_or_from_records(tmp_path: Path) -> None:
    video.write(tmp_path / "videos" / "b.mp4", torch.zeros(30, 32, 32, 3, dtype=torch.uint8), 12.5)
    path = table(tmp_path, PLAIN)
    entry = annotated(tmp_path, "--videos", str(tmp_path / "videos"), str(path)).videos["b"]
    assert (entry.duration_s, entry.fps) == (pytest.approx(2.4), 12.5)
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "a.npy", np.zeros((3, 3)))
    record = {"fps": 25, "stride": 8, "window": 16, "duration": 60.5, "model": "motion"}
    (tmp_path / "features" / "a.json").write_text(json.dumps(record))
    entry = annotated(tmp_path, "--features", str(tmp_path / "features"), str(path)).videos["a"]
    assert (entry.duration_s, entry.fps) == (60.5, 25)


def test_actions_after_the_end_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video.write(tmp_path / "videos" / "b.mp4", torch.zeros(20, 32, 32, 3, dtype=torch.uint8), 10)
    annotated(tmp_path, "--videos", str(tmp_path / "videos"), str(table(tmp_path, PLAIN)))
    assert "1 videos have actions after their end, such as b" in capsys.readouterr().out


names = st.text("abcxyz_0129", min_size=1, max_size=6)
actions = st.builds(Action, names, st.integers(0, 9), st.floats(0, 1e4), st.floats(0, 1e4))


videos_of = st.builds(
    Video,
    names,
    st.sampled_from(["training", "test"]),
    st.none() | st.floats(0, 1e5),
    st.none() | st.floats(1, 99),
    st.none() | st.floats(0, 9),
    st.lists(actions, max_size=4).map(tuple),
)


@given(st.lists(videos_of, max_size=5, unique_by=lambda entry: entry.id))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, videos: list[Video]) -> None:
    path = tmp_path_factory.mktemp("annotations") / "a.json"
    write_annotations(path, videos)
    assert list(read_annotations(path).videos.values()) == videos
