"""Annotation files of every dataset: what they say, in which order, and how their faults are named."""

from __future__ import annotations

import base64
import copyreg
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projects.sgear import annotations, pickles, salads, taxonomy
from projects.sgear.annotations import Segments
from projects.sgear.taxonomy import Taxonomy

EPIC = Taxonomy(("take cup", "put cup"), ("take", "put"), ("tap", "spoon", "cup"), np.array([[0, 2], [1, 2]]))
HEADER = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"

PICKLED = {  # one table, pickled by pandas 1.5, 2.3 and 3.1
    1: (
        "gASVNAQAAAAAAACMEXBhbmRhcy5jb3JlLmZyYW1llIwJRGF0YUZyYW1llJOUKYGUfZQojARfbWdylIwecGFuZGFzLmNvcmUuaW50ZXJuYWxzLm"
        "1hbmFnZXJzlIwMQmxvY2tNYW5hZ2VylJOUKIwWcGFuZGFzLl9saWJzLmludGVybmFsc5SMD191bnBpY2tsZV9ibG9ja5STlIwVbnVtcHkuY29y"
        "ZS5tdWx0aWFycmF5lIwMX3JlY29uc3RydWN0lJOUjAVudW1weZSMB25kYXJyYXmUk5RLAIWUQwFilIeUUpQoSwFLBEsChpRoD4wFZHR5cGWUk5"
        "SMAk84lImIh5RSlChLA4wBfJROTk5K/////0r/////Sz90lGKJXZQojANQMDGUaB+MBlAwMV8xMZRoIIwLMDA6MDA6MDAuMDCUjAswMDowMDow"
        "MS41NpSMCzAwOjAwOjAxLjg5lIwLMDA6MDA6MDIuNDWUZXSUYowIYnVpbHRpbnOUjAVzbGljZZSTlEsASwRLAYeUUpRLAoeUUpRoC2gOaBFLAI"
        "WUaBOHlFKUKEsBSwJLAoaUaBiMAmk4lImIh5RSlChLA4wBPJROTk5K/////0r/////SwB0lGKJQyAAAAAAAAAAAAEAAAAAAAAAAgAAAAAAAAAC"
        "AAAAAAAAAJR0lGJoKEsESwZLAYeUUpRLAoeUUpRoC2gOaBFLAIWUaBOHlFKUKEsBSwFLAoaUaBiMAmY4lImIh5RSlChLA2g0Tk5OSv////9K//"
        "///0sAdJRiiUMQAAAAAAAA4D8AAAAAAAD4P5R0lGJoKEsGSwdLAYeUUpRLAoeUUpRoC2gOaBFLAIWUaBOHlFKUKEsBSwFLAoaUaBuJXZQoXZSM"
        "BXBsYXRllGFdlGhQYWV0lGJoKEsHSwhLAYeUUpRLAoeUUpR0lF2UKIwYcGFuZGFzLmNvcmUuaW5kZXhlcy5iYXNllIwKX25ld19JbmRleJSTlG"
        "hZjAVJbmRleJSTlH2UKIwEZGF0YZRoDmgRSwCFlGgTh5RSlChLAUsIhZRoG4ldlCiMDnBhcnRpY2lwYW50X2lklIwIdmlkZW9faWSUjA9zdGFy"
        "dF90aW1lc3RhbXCUjA5zdG9wX3RpbWVzdGFtcJSMCnZlcmJfY2xhc3OUjApub3VuX2NsYXNzlIwBeJSMCWFsbF9ub3Vuc5RldJRijARuYW1llE"
        "51hpRSlGhbaF19lChoX2gOaBFLAIWUaBOHlFKUKEsBSwKFlGgbiV2UKIwIUDAxXzExXzCUjAhQMDFfMTFfMZRldJRiaG6MDG5hcnJhdGlvbl9p"
        "ZJR1hpRSlGWGlFKUjARfdHlwlIwJZGF0YWZyYW1llIwJX21ldGFkYXRhlF2UjAVhdHRyc5R9lIwGX2ZsYWdzlH2UjBdhbGxvd3NfZHVwbGljYX"
        "RlX2xhYmVsc5SIc3ViLg=="
    ),
    2: (
        "gASVNQQAAAAAAACMEXBhbmRhcy5jb3JlLmZyYW1llIwJRGF0YUZyYW1llJOUKYGUfZQojARfbWdylIwecGFuZGFzLmNvcmUuaW50ZXJuYWxzLm"
        "1hbmFnZXJzlIwMQmxvY2tNYW5hZ2VylJOUKIwWcGFuZGFzLl9saWJzLmludGVybmFsc5SMD191bnBpY2tsZV9ibG9ja5STlIwWbnVtcHkuX2Nv"
        "cmUubXVsdGlhcnJheZSMDF9yZWNvbnN0cnVjdJSTlIwFbnVtcHmUjAduZGFycmF5lJOUSwCFlEMBYpSHlFKUKEsBSwRLAoaUaA+MBWR0eXBllJ"
        "OUjAJPOJSJiIeUUpQoSwOMAXyUTk5OSv////9K/////0s/dJRiiV2UKIwDUDAxlGgfjAZQMDFfMTGUaCCMCzAwOjAwOjAwLjAwlIwLMDA6MDA6"
        "MDEuNTaUjAswMDowMDowMS44OZSMCzAwOjAwOjAyLjQ1lGV0lGKMCGJ1aWx0aW5zlIwFc2xpY2WUk5RLAEsESwGHlFKUSwKHlFKUaAtoDmgRSw"
        "CFlGgTh5RSlChLAUsCSwKGlGgYjAJpOJSJiIeUUpQoSwOMATyUTk5OSv////9K/////0sAdJRiiUMgAAAAAAAAAAABAAAAAAAAAAIAAAAAAAAA"
        "AgAAAAAAAACUdJRiaChLBEsGSwGHlFKUSwKHlFKUaAtoDmgRSwCFlGgTh5RSlChLAUsBSwKGlGgYjAJmOJSJiIeUUpQoSwNoNE5OTkr/////Sv"
        "////9LAHSUYolDEAAAAAAAAOA/AAAAAAAA+D+UdJRiaChLBksHSwGHlFKUSwKHlFKUaAtoDmgRSwCFlGgTh5RSlChLAUsBSwKGlGgbiV2UKF2U"
        "jAVwbGF0ZZRhXZRoUGFldJRiaChLB0sISwGHlFKUSwKHlFKUdJRdlCiMGHBhbmRhcy5jb3JlLmluZGV4ZXMuYmFzZZSMCl9uZXdfSW5kZXiUk5"
        "RoWYwFSW5kZXiUk5R9lCiMBGRhdGGUaA5oEUsAhZRoE4eUUpQoSwFLCIWUaBuJXZQojA5wYXJ0aWNpcGFudF9pZJSMCHZpZGVvX2lklIwPc3Rh"
        "cnRfdGltZXN0YW1wlIwOc3RvcF90aW1lc3RhbXCUjAp2ZXJiX2NsYXNzlIwKbm91bl9jbGFzc5SMAXiUjAlhbGxfbm91bnOUZXSUYowEbmFtZZ"
        "ROdYaUUpRoW2hdfZQoaF9oDmgRSwCFlGgTh5RSlChLAUsChZRoG4ldlCiMCFAwMV8xMV8wlIwIUDAxXzExXzGUZXSUYmhujAxuYXJyYXRpb25f"
        "aWSUdYaUUpRlhpRSlIwEX3R5cJSMCWRhdGFmcmFtZZSMCV9tZXRhZGF0YZRdlIwFYXR0cnOUfZSMBl9mbGFnc5R9lIwXYWxsb3dzX2R1cGxpY2"
        "F0ZV9sYWJlbHOUiHN1Yi4="
    ),
    3: (
        "gASV9wUAAAAAAACMBnBhbmRhc5SMCURhdGFGcmFtZZSTlCmBlH2UKIwEX21ncpSMHnBhbmRhcy5jb3JlLmludGVybmFscy5tYW5hZ2Vyc5SMDE"
        "Jsb2NrTWFuYWdlcpSTlCiMFnBhbmRhcy5fbGlicy5pbnRlcm5hbHOUjA9fdW5waWNrbGVfYmxvY2uUk5SME3BhbmRhcy5fbGlicy5hcnJheXOU"
        "jBxfX3B5eF91bnBpY2tsZV9OREFycmF5QmFja2VklJOUjA1wYW5kYXMuYXJyYXlzlIwLU3RyaW5nQXJyYXmUk5RKHwbxBE6HlFKUaACMC1N0cm"
        "luZ0R0eXBllJOUjAZweXRob26UR3/4AAAAAAAAhpRSlIwWbnVtcHkuX2NvcmUubXVsdGlhcnJheZSMDF9yZWNvbnN0cnVjdJSTlIwFbnVtcHmU"
        "jAduZGFycmF5lJOUSwCFlEMBYpSHlFKUKEsBSwKFlGgcjAVkdHlwZZSTlIwCTziUiYiHlFKUKEsDjAF8lE5OTkr/////Sv////9LP3SUYoldlC"
        "iMA1AwMZRoLGV0lGKGlGKMCGJ1aWx0aW5zlIwFc2xpY2WUk5RLAEsBSwGHlFKUSwKHlFKUaAtoDmgRSh8G8QROh5RSlGgVaBZHf/gAAAAAAACG"
        "lFKUaBtoHksAhZRoIIeUUpQoSwFLAoWUaCiJXZQojAZQMDFfMTGUaD9ldJRihpRiaDFLAUsCSwGHlFKUSwKHlFKUaAtoDmgRSh8G8QROh5RSlG"
        "gVaBZHf/gAAAAAAACGlFKUaBtoHksAhZRoIIeUUpQoSwFLAoWUaCiJXZQojAswMDowMDowMC4wMJSMCzAwOjAwOjAxLjU2lGV0lGKGlGJoMUsC"
        "SwNLAYeUUpRLAoeUUpRoC2gOaBFKHwbxBE6HlFKUaBVoFkd/+AAAAAAAAIaUUpRoG2geSwCFlGggh5RSlChLAUsChZRoKIldlCiMCzAwOjAwOj"
        "AxLjg5lIwLMDA6MDA6MDIuNDWUZXSUYoaUYmgxSwNLBEsBh5RSlEsCh5RSlGgLaBtoHksAhZRoIIeUUpQoSwFLAksChpRoJYwCaTiUiYiHlFKU"
        "KEsDjAE8lE5OTkr/////Sv////9LAHSUYolDIAAAAAAAAAAAAQAAAAAAAAACAAAAAAAAAAIAAAAAAAAAlHSUYmgxSwRLBksBh5RSlEsCh5RSlG"
        "gLaBtoHksAhZRoIIeUUpQoSwFLAUsChpRoJYwCZjiUiYiHlFKUKEsDaG9OTk5K/////0r/////SwB0lGKJQxAAAAAAAADgPwAAAAAAAPg/lHSU"
        "YmgxSwZLB0sBh5RSlEsCh5RSlGgLaBtoHksAhZRoIIeUUpQoSwFLAUsChpRoKIldlChdlIwFcGxhdGWUYV2UaIthZXSUYmgxSwdLCEsBh5RSlE"
        "sCh5RSlHSUXZQojBhwYW5kYXMuY29yZS5pbmRleGVzLmJhc2WUjApfbmV3X0luZGV4lJOUaACMBUluZGV4lJOUfZQojARkYXRhlGgOaBFKHwbx"
        "BE6HlFKUaBVoFkd/+AAAAAAAAIaUUpRoG2geSwCFlGggh5RSlChLAUsIhZRoKIldlCiMDnBhcnRpY2lwYW50X2lklIwIdmlkZW9faWSUjA9zdG"
        "FydF90aW1lc3RhbXCUjA5zdG9wX3RpbWVzdGFtcJSMCnZlcmJfY2xhc3OUjApub3VuX2NsYXNzlIwBeJSMCWFsbF9ub3Vuc5RldJRihpRijARu"
        "YW1llE51hpRSlGiWaJh9lChommgOaBFKHwbxBE6HlFKUaBVoFkd/+AAAAAAAAIaUUpRoG2geSwCFlGggh5RSlChLAUsChZRoKIldlCiMCFAwMV"
        "8xMV8wlIwIUDAxXzExXzGUZXSUYoaUYmiujAxuYXJyYXRpb25faWSUdYaUUpRlhpRSlIwEX3R5cJSMCWRhdGFmcmFtZZSMCV9tZXRhZGF0YZRd"
        "lIwFYXR0cnOUfZSMBl9mbGFnc5R9lIwXYWxsb3dzX2R1cGxpY2F0ZV9sYWJlbHOUiHN1Yi4="
    ),
}


def official(path: Path, *lines: str, header: str = HEADER) -> Path:
    path.write_text(header + "".join(f"{line}\n" for line in lines))
    return path


def segments(start_s: list[float], end_s: list[float] | None = None) -> Segments:
    start = np.array(start_s, dtype=float)
    count = np.arange(len(start))
    names = np.array([str(k) for k in count], dtype=np.str_)
    paths = np.array(["P01/P01_01.MP4"] * len(start))
    return Segments(names, names, paths, start, start + 1 if end_s is None else np.array(end_s), count, count, count)


# --- official files


def test_an_official_csv(tmp_path: Path) -> None:
    path = official(
        tmp_path / "train.csv",
        "P01_11_0,P01,P01_11,00:00:00.00,00:00:01.89,0,2",
        "x,P02,P02_01,01:02:03.5,01:02:04,1,0",
    )
    found = annotations.read_official(path, EPIC)
    assert found.id.tolist() == ["P01_11_0", "x"]
    assert found.path.tolist() == ["P01/P01_11.MP4", "P02/P02_01.MP4"]
    assert found.start_s.tolist() == [0.0, 3723.5]
    assert found.end_s.tolist() == [1.89, 3724.0]
    assert found.action.tolist() == [0, -1], "a pair that the action table lacks has no class"


def test_a_test_file_has_no_labels(tmp_path: Path) -> None:
    header = HEADER.replace(",verb_class,noun_class", "")
    found = annotations.read_official(
        official(tmp_path / "t.csv", "7,P01,P01_11,00:00:01.0,00:00:02.0", header=header), EPIC
    )
    assert (found.verb.tolist(), found.noun.tolist(), found.action.tolist()) == ([-1], [-1], [-1])


@given(st.integers(0, 99 * 3600 * 100))
def test_a_time_is_the_nearest_number(hundredths: int) -> None:
    minutes, seconds = divmod(hundredths, 6000)
    stamp = f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds // 100:02d}.{seconds % 100:02d}"
    assert annotations._times(Path("x"), [stamp]).tolist() == [hundredths / 100]


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        ([], "narration_id,video_id\n", "column participant_id, start_timestamp, stop_timestamp is missing"),
        (["a,P01,P01_11,00:00:00.00"], HEADER, "line 2: 4 values for 7 columns"),
        (["a,P01,P01_11,0:61,00:00:01.0,0,2"], HEADER, "row 1: '0:61' is no time"),
        (["a,P01,P01_11,00:00:00.0,00:00:01.0,zero,2"], HEADER, "column verb_class"),
        (["a,P01,P01_11,00:00:00.0,00:00:01.0,5,2"], HEADER, "verb_class 5 is none of the 2 verbs"),
    ],
)  # fmt: skip
def test_faults_of_an_official_csv_are_named(tmp_path: Path, lines: list[str], header: str, message: str) -> None:
    path = official(tmp_path / "train.csv", *lines, header=header)
    with pytest.raises(ValueError, match=message) as error:
        annotations.read_official(path, EPIC)
    assert str(path) in str(error.value)


def test_a_missing_file_says_where_files_come_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.csv does not exist; docs/data.md"):
        annotations.read_official(tmp_path / "nowhere.csv", EPIC)


@pytest.mark.parametrize("pandas", PICKLED)
def test_a_pickled_table_reads_as_its_csv(tmp_path: Path, pandas: int) -> None:
    path = tmp_path / "table.pkl"
    path.write_bytes(base64.b64decode(PICKLED[pandas]))
    columns = pickles.table(path)
    assert list(columns)[:3] == ["narration_id", "participant_id", "video_id"]
    assert columns["x"] == [0.5, 1.5]
    found = annotations.read_official(path, EPIC)
    lines = ["P01_11_0,P01,P01_11,00:00:00.00,00:00:01.89,0,2", "P01_11_1,P01,P01_11,00:00:01.56,00:00:02.45,1,2"]
    wanted = annotations.read_official(official(tmp_path / "table.csv", *lines), EPIC)
    for column, values in vars(wanted).items():
        assert getattr(found, column).tolist() == values.tolist(), column


def test_the_layout_of_old_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official files were pickled by pandas 0.2x: state tuples, NEWOBJ, indices by `_new_Index`."""
    module = types.ModuleType("pandas.core.internals")
    index = types.ModuleType("pandas.core.indexes.base")
    frame = types.ModuleType("pandas.core.frame")

    class Old:
        def __init__(self, state: object) -> None:
            self.kept = state

        def __reduce_ex__(self, protocol: int) -> tuple:
            return copyreg.__newobj__, (type(self),), self.kept

    class Index:
        def __init__(self, content: dict) -> None:
            self.content = content

        def __reduce_ex__(self, protocol: int) -> tuple:
            return index._new_Index, (type(self), self.content)

    def _new_Index(kind: type, content: dict) -> object:  # noqa: N802 - its name in pandas
        return content

    for holder, name, thing in (
        (module, "BlockManager", type("BlockManager", (Old,), {})), (frame, "DataFrame", type("DataFrame", (Old,), {})),
        (index, "Index", Index), (index, "_new_Index", _new_Index),
    ):  # fmt: skip
        thing.__module__, thing.__qualname__ = holder.__name__, name
        setattr(holder, name, thing)
        monkeypatch.setitem(sys.modules, holder.__name__, holder)
    for parent in ("pandas", "pandas.core", "pandas.core.indexes"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    text = np.array([["P01"], ["P01_11"], ["00:00:01.00"], ["00:00:02.00"]], dtype=object)
    numbers = np.array([[0], [2]])
    names = ["participant_id", "video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class"]
    axes = [
        Index({"data": np.array(names, dtype=object), "name": None}),
        Index({"data": np.array([11]), "name": "uid"}),
    ]
    blocks = [{"values": text, "mgr_locs": slice(0, 4, 1)}, {"values": numbers, "mgr_locs": np.array([4, 5])}]
    manager = module.BlockManager((axes, [], [], {"0.14.1": {"axes": axes, "blocks": blocks}}))
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps(frame.DataFrame({"_data": manager, "_typ": "dataframe"}), protocol=2))
    found = annotations.read_official(path, EPIC)
    assert (found.id.tolist(), found.video.tolist(), found.action.tolist()) == (["11"], ["P01_11"], [0])


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("evil"),))


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1})], ids=["empty", "text", "other"])
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"table.pkl"):
        pickles.table(path)


def test_a_pickle_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "table.pkl"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"table.pkl"):
        pickles.table(path)
    assert not (tmp_path / "evil").exists()


# --- RULSTM's files


def test_a_rulstm_csv(tmp_path: Path) -> None:
    path = tmp_path / "training.csv"
    path.write_text("00330, P01_02, 0000000152, 0000000205, 000, 004, 0194\nP01_11_3,P01_11,30,60,1,2,7\n")
    found = annotations.read_rulstm(path)
    assert found.id.tolist() == ["330", "P01_11_3"]
    assert found.path.tolist() == ["P01/P01_02.MP4", "P01/P01_11.MP4"]
    assert found.start_s.tolist() == [152 / 30, 1.0]
    assert found.action.tolist() == [194, 7]
    path.write_text("1, OP01-R01-PastaSalad, 3, 9\n")
    found = annotations.read_rulstm(path, participants=False)
    assert (found.path.tolist(), found.action.tolist()) == (["OP01-R01-PastaSalad.mp4"], [-1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,1\n", "3 columns"),
        ("a,b,1,2\na,b,1\n", "line 2: 3 values"),
        ("a,b,one,2\n", "whole numbers"),
        ("", "is empty"),
    ],
)
def test_faults_of_a_rulstm_csv_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "training.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        annotations.read_rulstm(path)
    assert str(path) in str(error.value)


def test_videos_and_persons_restrict(tmp_path: Path) -> None:
    path = tmp_path / "training.csv"
    path.write_text("1,P01_02,1,2,0,0,0\n2,P25_01,1,2,0,0,0\n3,P26_01,1,2,0,0,0\n4,P01_03,1,2,0,0,0\n")
    found = annotations.read_rulstm(path)
    assert annotations.of_persons(found, 1, 25).id.tolist() == ["1", "2", "4"]
    assert annotations.of_videos(found, ["P01_02", "P26_01"]).id.tolist() == ["1", "3"]


def test_frame_rates_of_both_editions(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("video_id,duration,fps,resolution\nP01_101,1,50.0,x\n")
    (tmp_path / "b.csv").write_text("video,resolution,duration,fps\nP01_01,x,1,59.94\n")
    paths = [tmp_path / name for name in ("a.csv", "b.csv", "absent.csv")]
    assert annotations.frame_rates(paths) == {"P01_101": 50.0, "P01_01": 59.94}


# --- from actions to what is seen


@given(
    st.lists(st.floats(0, 1e4), min_size=1, max_size=20),
    st.sampled_from([0.25, 0.5, 1.0, -1.0]),
    st.floats(0.5, 30),
    st.sampled_from(["correct", "full_context_in", "action_banks"]),
)
def test_rows_are_kept_or_dropped_by_what_can_be_seen(
    start_s: list[float], tau_a: float, tau_o: float, drop: annotations.Drop
) -> None:
    given_rows = segments(start_s)
    seen = annotations.observe(given_rows, tau_a, tau_o, drop)
    assert sorted([*seen.segments.id, *seen.dropped.id], key=int) == given_rows.id.tolist()
    np.testing.assert_array_equal(seen.end_s, seen.segments.start_s - tau_a)
    np.testing.assert_array_equal(seen.start_s, seen.end_s - tau_o)
    least = {"correct": seen.end_s - 1 / 30, "full_context_in": seen.start_s - 1 / 30, "action_banks": seen.end_s - 2}
    assert (least[drop] >= 0).all()


def test_recognition_sees_the_action() -> None:
    seen = annotations.observe(segments([0.0, 5.0], [2.0, 9.0]), annotations.RECOGNITION, 15.0)
    assert (seen.start_s.tolist(), seen.end_s.tolist()) == ([0.0, 5.0], [2.0, 9.0])


def test_parts_are_joined_in_order() -> None:
    both = annotations.join([segments([1.0]), segments([2.0, 3.0])])
    assert both.start_s.tolist() == [1.0, 2.0, 3.0]


# --- classes


def test_epic_classes(tmp_path: Path) -> None:
    (tmp_path / "EPIC_verb_classes.csv").write_text("verb_id,class_key,verbs\n0,take,\"['take']\"\n1,put,x\n")
    (tmp_path / "EPIC_noun_classes.csv").write_text("noun_id,class_key,nouns\n0,pan,x\n1,lid,x\n")
    (tmp_path / "actions.csv").write_text("id,action,verb,noun\n0, take_pan,0,0\n1, put_lid,1,1\n")
    (tmp_path / "EPIC_many_shot_verbs.csv").write_text("verb_class,verb\n1,put\n")
    (tmp_path / "EPIC_many_shot_nouns.csv").write_text("noun_class,noun\n")
    found = taxonomy.read_epic(tmp_path, tmp_path / "actions.csv", edition=55)
    assert (found.actions, found.verbs, found.nouns) == (("take_pan", "put_lid"), ("take", "put"), ("pan", "lid"))
    assert found.mapping("verb").tolist() == [[1, 0], [0, 1]]
    assert found.action(np.array([1, 1, -1]), np.array([1, 0, 0])).tolist() == [1, -1, -1]
    (tmp_path / "actions.csv").write_text("id,action,verb,noun\n1, take_pan,0,0\n")
    with pytest.raises(ValueError, match="ids should count 0, 1, 2"):
        taxonomy.read_epic(tmp_path, tmp_path / "actions.csv", edition=55)
    with pytest.raises(ValueError, match=r"EPIC_100_verb_classes.csv does not exist"):
        taxonomy.read_epic(tmp_path, tmp_path / "actions.csv", edition=100)


def test_many_shot_actions_have_one_of_both(tmp_path: Path) -> None:
    (tmp_path / "EPIC_many_shot_verbs.csv").write_text("verb_class,verb\n1,put\n")
    (tmp_path / "EPIC_many_shot_nouns.csv").write_text("noun_class,noun\n0,tap\n")
    pairs = np.array([[0, 0], [0, 1], [1, 1]])
    some = taxonomy.many_shot(tmp_path, Taxonomy(("a", "b", "c"), ("take", "put"), ("tap", "cup"), pairs))
    assert (some.verb.tolist(), some.noun.tolist(), some.action.tolist()) == ([1], [0], [0, 2])


def test_egtea_names_come_from_its_actions(tmp_path: Path) -> None:
    path = tmp_path / "actions.csv"
    path.write_text("0, 0_0, Inspect/Read_recipe\n1, 1_1, Open_fridge\n2, 1_0, Open_recipe\n")
    found = taxonomy.read_egtea(path)
    assert (found.verbs, found.nouns) == (("Inspect/Read", "Open"), ("recipe", "fridge"))
    path.write_text("0, 0-0, Inspect\n")
    with pytest.raises(ValueError, match="expected lines such as"):
        taxonomy.read_egtea(path)


# --- 50 Salads and Breakfast

SALADS = taxonomy.of_names(("cut_tomato", "add_oil"))


def test_runs_of_labels_are_actions(tmp_path: Path) -> None:
    (tmp_path / "rgb-01-1.txt").write_text("cut_tomato\n" * 3 + "add_oil\n" * 2 + "cut_tomato\n")
    options = {"rate": lambda path: 10.0, "place": salads.salads_video}
    found = salads.read_segments(["rgb-01-1.txt"], tmp_path, SALADS, **options)
    assert found.action.tolist() == [0, 1, 0]
    assert found.start_s.tolist() == [0.0, 0.3, 0.5]
    assert found.end_s.tolist() == [0.3, 0.5, 0.6]
    assert set(found.path) == {"rgb-01-1.avi"}
    (tmp_path / "rgb-01-1.txt").write_text("fly\n")
    with pytest.raises(ValueError, match="'fly' is none of the 2 actions"):
        salads.read_segments(["rgb-01-1.txt"], tmp_path, SALADS, **options)


def test_each_video_has_its_own_frame_rate(tmp_path: Path) -> None:
    for name in ("rgb-01-1.txt", "rgb-02-1.txt"):
        (tmp_path / name).write_text("cut_tomato\n" * 30)
    rates = {"rgb-01-1.avi": 30.0, "rgb-02-1.avi": 15.0}
    names = ["rgb-01-1.txt", "rgb-02-1.txt"]
    found = salads.read_segments(names, tmp_path, SALADS, rate=rates.__getitem__, place=salads.salads_video)
    assert found.end_s.tolist() == [1.0, 2.0]


def test_activities_with_timestamps(tmp_path: Path) -> None:
    (tmp_path / "timestamps-01-1.txt").write_text("".join(f"{1000 + 40 * k} {k}\n" for k in range(100)))
    (tmp_path / "01-1-activityAnnotation.txt").write_text(
        "1000 2960 cut_and_mix_ingredients\n1400 1599 cut_tomato_core\n1200 1399 cut_tomato_prep\n"
        "2000 2199 add_oil_core\n"
    )
    runs = salads.activities(tmp_path)(tmp_path, "rgb-01-1.txt")
    assert runs == [(5, 15, "cut_tomato"), (25, 30, "add_oil")]
    (tmp_path / "01-1-activityAnnotation.txt").write_text("broken\n")
    with pytest.raises(ValueError, match="line 1: expected `start end activity`"):
        salads.activities(tmp_path)(tmp_path, "rgb-01-1.txt")


def test_bundles_and_names(tmp_path: Path) -> None:
    path = tmp_path / "train.split1.bundle"
    path.write_text("#bundle.txt\n./groundTruth/rgb-01-1.txt\nrgb-02-2.txt\n")
    assert salads.read_bundle(path) == ["rgb-01-1.txt", "rgb-02-2.txt"]
    path.write_text("rgb-01-1.txt\n")
    with pytest.raises(ValueError, match=r"expected #bundle.txt in the first line"):
        salads.read_bundle(path)
    assert salads.breakfast_video("P03_cam01_P03_cereals.txt") == "P03/cam01/P03_cereals.avi"
    (tmp_path / "P04/stereo").mkdir(parents=True)
    (tmp_path / "P04/stereo/P04_milk_ch1.avi").touch()
    assert salads.breakfast_video("P04_stereo01_P04_milk.txt", [tmp_path]) == "P04/stereo/P04_milk_ch1.avi"
