"""Everything that users get wrong is found before training, and the way out is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core import config
from projects.actionformer import doctor
from projects.actionformer.checks import Finding
from projects.actionformer.config import Config, DataConfig
from projects.actionformer.doctor import Examination, examine
from projects.actionformer.fit import Fit
from tests.actionformer.folders import entry, folder, rows, write_annotations

ACTIONS = (("walk", 0, 1.0, 5.0), ("run", 1, 8.0, 12.0), ("jump", 2, 13.0, 16.0))
DURATION_S = 17.0
LENGTH = 50  # features: (49 * 8 + 16) / 24 = 17 s
MODEL = ("model.arch=[1, 1, 2]", "model.width=[16]", "model.neck_width=16", "model.head_width=16",
         "model.ranges=[[0, 6], [4, 10], [8, 10000]]")  # fmt: skip


def database(**changes: Any) -> dict[str, Any]:
    videos = {
        name: entry("training" if name < "e" else "validation", ACTIONS, duration=DURATION_S) for name in "abcdef"
    }
    return {**videos, **changes}


def examined(root: Path, data: DataConfig, *overrides: str) -> Examination:
    cfg = config.load(Config, overrides=[f"run.out={root / 'run'}", *MODEL, *overrides])
    found = Examination(cfg.model_copy(update={"data": data}))
    found.findings += examine(found)
    return found


def look(root: Path, *overrides: str, videos: dict[str, Any] | None = None, **keys: Any) -> Examination:
    cfg = folder(root, videos or database(), dict.fromkeys("abcdef", LENGTH), **keys)
    return examined(root, cfg, *overrides)


def serious(found: Examination) -> list[Finding]:
    return [finding for finding in found.findings if finding.level != "ok" and "disk" not in finding.advice]


def only(found: Examination, level: str, words: str) -> Finding:
    """The one finding that is not ok says these words."""
    bad = serious(found)
    assert [finding.level for finding in bad] == [level], [str(finding) for finding in bad]
    assert words in bad[0].text
    return bad[0]


def test_good_data_are_good(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert serious(found) == []
    text = "\n".join(map(str, found.findings))
    assert "4 train videos can be read: 50 to 50 features of 4 channels" in text
    assert "features span 100 % of the annotated durations (median of 6 videos)" in text
    assert "12 of 12 actions have points that learn them" in text


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        ({"stride_frames": 4}, "data.stride_frames=8, or data.fps=12"),
        ({"fps": 30}, "data.stride_frames=10, or data.fps=24"),
        ({"stride_frames": 16}, "data.stride_frames=8.16, or data.fps=47"),
    ],
)
def test_a_wrong_stride_or_frame_rate_is_found_and_the_right_one_is_said(
    tmp_path: Path, keys: dict[str, Any], advice: str
) -> None:
    bad = [f for f in serious(look(tmp_path, **keys)) if f.level == "error"]
    assert len(bad) == 1
    assert "of the annotated durations" in bad[0].text
    stride = float(bad[0].advice.split("stride_frames=")[1].split(",")[0])
    assert stride == pytest.approx(8 * keys.get("fps", 24) / 24, rel=0.05)


def test_labels_that_count_from_one(tmp_path: Path) -> None:
    actions = [(label, k + 1, start, end) for label, k, start, end in ACTIONS]
    found = look(tmp_path, videos=database(a=entry("training", actions), b=entry("training", actions)) | {
        name: entry("validation", actions) for name in "cdef"})  # fmt: skip
    assert "count from 1" in only(found, "error", "label ids go from 1 to 3").text


def test_classes_that_are_too_many_or_absent(tmp_path: Path) -> None:
    assert "data.classes=3" in only(look(tmp_path, classes=5), "warning", "no video has the label ids 3, 4").advice
    few = {name: entry("training", ACTIONS[:2], duration=DURATION_S) for name in "abcd"}
    found = look(tmp_path, videos=database(**few))
    assert "model.empty_classes" in only(found, "warning", "train videos have no action of 1 classes: jump").advice


def test_labels_with_several_ids_and_ids_with_several_labels(tmp_path: Path) -> None:
    twice = entry("training", [("walk", 1, 1.0, 3.0)], duration=DURATION_S)
    texts = [finding.text for finding in serious(look(tmp_path, videos=database(a=twice)))]
    assert any("labels with several ids: walk" in text for text in texts)
    other = entry("training", [("stroll", 0, 1.0, 3.0)], duration=DURATION_S)
    assert "stroll, walk" in only(look(tmp_path, videos=database(a=other)), "warning", "ids with several labels").text


def test_subsets_that_are_not_there_or_the_same(tmp_path: Path) -> None:
    found = look(tmp_path, train_splits=("train",))
    assert "it has training (4), validation (2)" in only(found, "error", "no video of train;").text
    same = look(tmp_path, eval_splits=("training",))
    assert "split them" in only(same, "warning", "the same videos train and are evaluated").advice


def test_features_that_are_missing(tmp_path: Path) -> None:
    cfg = folder(tmp_path, database(), dict.fromkeys("abcdf", LENGTH))
    finding = only(examined(tmp_path, cfg), "warning", "1 of 2 eval videos have no features")
    assert finding.text.endswith("e.npy")
    assert "count as missed" in finding.advice


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (rows(LENGTH, 6), "has 6 channels"),
        (rows(LENGTH, 4).T, "it lies on its side"),
        (np.full((LENGTH, 4), np.nan, np.float32), "values that are not finite"),
        (rows(LENGTH, 4)[None], "shape (1, 50, 4)"),
    ],
    ids=["width", "turned", "nan", "3d"],
)
def test_feature_files_that_do_not_suit(tmp_path: Path, values: np.ndarray, words: str) -> None:
    cfg = folder(tmp_path, database(), dict.fromkeys("abcdef", LENGTH))
    np.save(tmp_path / "features" / "b.npy", values)
    finding = only(examined(tmp_path, cfg), "error", words)
    assert "b.npy" in finding.text


def test_one_video_whose_features_are_cut_short(tmp_path: Path) -> None:
    cfg = folder(tmp_path, database(), {**dict.fromkeys("abcdef", LENGTH), "c": 20})
    texts = [finding.text for finding in serious(examined(tmp_path, cfg))]
    assert any("1 videos differ much from that: c" in text for text in texts)
    assert any("actions lie mostly after the end of the features" in text for text in texts)


def record(root: Path, name: str, **changes: Any) -> None:
    about = {"fps": 24.0, "stride": 8, "window": 16, "duration": DURATION_S, "model": "i3d", **changes}
    (root / "features" / f"{name}.json").write_text(json.dumps(about))


def test_records_that_contradict_the_configuration_or_each_other(tmp_path: Path) -> None:
    cfg = folder(tmp_path, database(), dict.fromkeys("abcdef", LENGTH))
    for name in "abcdef":
        record(tmp_path, name)
    assert serious(examined(tmp_path, cfg)) == []
    assert serious(examined(tmp_path, cfg.model_copy(update={"stride_frames": None}))) == []
    other = only(examined(tmp_path, cfg.model_copy(update={"window_frames": 32})), "error", "was extracted with")
    assert "data.stride_frames=null" in other.advice
    record(tmp_path, "d", model="r3d_18")
    assert "stride 8, window 16, i3d; stride 8, window 16, r3d_18" in only(
        examined(tmp_path, cfg), "error", "the features were made in several ways"
    ).text  # fmt: skip


def test_unequal_frame_rates(tmp_path: Path) -> None:
    videos = {name: {**about, "fps": 24} for name, about in database().items()}
    videos["b"] |= {"fps": 30, "duration": DURATION_S * 24 / 30}
    found = look(tmp_path, videos=videos, fps=None)
    assert any("frame rates differ between videos (24, 30)" in finding.text for finding in serious(found))


def test_points_tiny_actions_and_short_videos(tmp_path: Path) -> None:
    points = entry("training", [("walk", 0, 3.0, 3.0), ("run", 1, 5.0, 5.1)], duration=DURATION_S)
    cfg = folder(tmp_path, database(a=points), {**dict.fromkeys("abcdef", LENGTH), "b": 3})
    texts = [f"{finding.text} {finding.advice}" for finding in serious(examined(tmp_path, cfg))]
    assert any("1 of 17 actions have no length" in text and "snapformer" in text for text in texts)
    assert any("1 of 17 actions are shorter than half a feature" in text for text in texts)
    assert any("1 of 6 videos are shorter than the coarsest step" in text for text in texts)


def test_ranges_that_no_action_reaches(tmp_path: Path) -> None:
    found = look(tmp_path, "model.ranges=[[0, 1], [1, 2], [2, 3]]")
    texts = [finding.text for finding in serious(found)]
    assert "0 of 12 actions have points that learn them" in texts
    assert any(text.startswith("levels without any action: ranges 0 to 1, 1 to 2, 2 to 3") for text in texts)
    assert isinstance(found.fit, Fit)
    assert found.fit.unserved == 12


def test_lengths_that_only_the_official_code_would_refuse(tmp_path: Path) -> None:
    texts = [finding.text for finding in look(tmp_path, "model.window=[5]").findings]
    assert not any("no multiple" in text for text in texts)  # 64 is a multiple of 4 x 4
    found = look(tmp_path, "model.window=[7]")
    assert serious(found) == []
    assert any("data.max_length=64 is no multiple of 24" in finding.text for finding in found.findings)


def test_ranges_beyond_what_a_distribution_can_say(tmp_path: Path) -> None:
    found = look(tmp_path, "model.name=tbtformer", "model.reg_max=4", "model.ranges=[[0, 8], [4, 12], [8, 10000]]")
    assert any("ranges reach 8 strides, a distribution says up to model.reg_max=4" in f.text for f in serious(found))


def test_a_network_that_cannot_be_built(tmp_path: Path) -> None:
    found = look(tmp_path, "model.width=[16, 16]", "model.neck_width=32", "model.head_width=32")
    assert only(found, "error", "the network cannot be built")


def test_the_suggestion_is_a_configuration_that_serves_every_action(tmp_path: Path) -> None:
    found = look(tmp_path, "model.ranges=[[0, 1], [1, 2], [2, 3]]")
    assert found.fit is not None
    text = doctor.suggestion(found.cfg, found.fit)
    (tmp_path / "suggested.yaml").write_text(text)
    cfg = config.load(Config, tmp_path / "suggested.yaml")
    assert cfg.data.max_length >= LENGTH
    found.cfg = found.cfg.model_copy(update={"model": cfg.model})
    assert doctor.measure(found.cfg, found.items).unserved == 0


def test_the_command_says_it_all_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path, database(), dict.fromkeys("abcdef", LENGTH))
    arguments = [f"run.out={tmp_path / 'run'}", *MODEL, "data.dataset=own", f"data.annotations={data.annotations}",
                 f"data.features=[{data.features[0]}]", "data.input_dim=[4]", "data.classes=3", "data.stride_frames=8",
                 "data.window_frames=16", "data.fps=24"]  # fmt: skip
    assert doctor.main(arguments) == 0
    said = capsys.readouterr().out
    assert "0 errors, 0 warnings" in said
    assert "a configuration that would suit these data:\ndata: {max_length: " in said
    page = (tmp_path / "run" / "doctor.html").read_text()
    assert "Levels of the pyramid" in page
    assert "Actions per class" in page
    assert doctor.main([*arguments, "data.fps=60"]) == 1
    assert "-> every detection would be at the wrong time" in capsys.readouterr().out
    write_annotations(tmp_path, {})
    assert doctor.main(arguments) == 1
    assert (tmp_path / "run" / "doctor.html").stat().st_size > 1000
