"""What is sent to the challenges, and what the check finds in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projects.actionformer import submission
from projects.actionformer.postprocess import Detections
from tests.actionformer.folders import entry, write_annotations

CLASSES = ("Jump", "Run")
TABLE = {
    "v": Detections(np.array([[0.5, 2.25], [1, 9]], np.float32), np.array([0.25, 0.75], np.float32), np.array([0, 1])),
    "w": submission.nothing(),
}


def test_activitynet() -> None:
    content = submission.activitynet(TABLE, CLASSES)
    assert content["version"] == "VERSION 1.3"
    assert set(content["external_data"]) == {"used", "details"}
    assert content["results"] == {
        "v": [
            {"label": "Run", "score": 0.75, "segment": [1.0, 9.0]},
            {"label": "Jump", "score": 0.25, "segment": [0.5, 2.25]},
        ],
        "w": [],
    }
    assert submission.check(content, "activitynet", ["v", "w"], CLASSES, {"v": 10.0}) == []


def test_ego4d_counts_from_the_beginning_of_the_clip() -> None:
    content = submission.ego4d(TABLE, CLASSES, {"v": 0.75})
    assert (content["version"], content["challenge"]) == ("1.0", "ego4d_moment_queries")
    assert [row["segment"] for row in content["detect_results"]["v"]] == [[0.25, 8.25], [0.0, 1.5]]
    assert content["retrieve_results"] == content["detect_results"]
    assert submission.check(content, "ego4d", ["v", "w"], CLASSES, {"v": 8.25}) == []


def test_epic_has_verb_noun_and_both() -> None:
    found = TABLE["v"]._replace(labels=np.array([2 * 300 + 17, 96 * 300 + 299]))
    content = submission.epic({"P01_11": found})
    assert content["challenge"] == "action_detection"
    assert {content[key] for key in ("sls_pt", "sls_tl", "sls_td")} == {2, 3}
    rows = content["results"]["P01_11"]
    assert [(row["verb"], row["noun"], row["action"]) for row in rows] == [(96, 299, "96,299"), (2, 17, "2,17")]
    assert submission.check(content, "epic", ["P01_11"], (), {}) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["results"].pop("v"), "video v is missing"),
        (lambda c: c["results"].update(x=[]), "video x is not in the annotations"),
        (lambda c: c["results"]["v"][0].update(label="Swim"), "v, detection 0: label 'Swim' is no class"),
        (lambda c: c["results"]["v"][0].update(label=3), "label is 3, expected the name of a class"),
        (lambda c: c["results"]["v"][1].update(score="high"), "v, detection 1: score is 'high', expected a number"),
        (lambda c: c["results"]["v"][1].update(score=float("nan")), "score is nan"),
        (lambda c: c["results"]["v"][0].pop("segment"), "segment is None, expected"),
        (lambda c: c["results"]["v"][0].update(segment=[5, 2]), "must have 0 <= start <= end"),
        (lambda c: c["results"]["v"][0].update(segment=[5, 20]), "ends after the video, which has 10.0 s"),
        (lambda c: c["results"].update(v={}), "v: expected a list of detections, got dict"),
        (lambda c: c["results"]["v"].append(4), "detection 2: expected an object, got 4"),
        (lambda c: c.pop("version"), "version is missing"),
        (lambda c: c.pop("results"), "results is missing or no object of videos"),
    ],
)
def test_every_problem_is_named(change: Any, words: str) -> None:
    content = json.loads(json.dumps(submission.activitynet(TABLE, CLASSES)))
    change(content)
    problems = submission.check(content, "activitynet", ["v", "w"], CLASSES, {"v": 10.0})
    assert any(words in line for line in problems), problems


def test_a_challenge_has_fixed_words_and_levels() -> None:
    content = submission.epic({}) | {"challenge": "action_recognition", "sls_tl": 9}
    lines = submission.check(content, "epic", [], (), {})
    assert lines == [
        "challenge is 'action_recognition', expected 'action_detection'",
        "sls_tl is 9, expected a level of supervision from 0 to 5",
    ]
    wrong = {"verb": 97, "noun": 3, "action": "97,3", "score": 1.0, "segment": [0, 1]}
    mixed = {"verb": 1, "noun": 3, "action": "3,1", "score": 1.0, "segment": [0, 1]}
    content = submission.epic({}) | {"results": {"P": [wrong, mixed]}}
    assert submission.check(content, "epic", ["P"], (), {}) == [
        "results, P, detection 0: verb is 97, expected a number from 0 to 96",
        "results, P, detection 1: action is '3,1', expected '1,3'",
    ]
    assert submission.check([], "ego4d", [], (), {}) == ["the file holds list, expected one JSON object"]


def test_many_missing_videos_are_counted() -> None:
    lines = submission.check(submission.epic({}), "epic", [f"{k:03d}" for k in range(50)], (), {})
    assert len(lines) == submission.LISTED + 1
    assert lines[-1] == "results: video ... and 30 more of 50 is missing"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"v": {"duration": 10.0}, "w": {}, "x": {}}
    database = {
        name: entry("test" if name != "x" else "training", [("Jump", 0, 0, 1), ("Run", 1, 0, 1)], **facts[name])
        for name in "vwx"
    }
    annotations = write_annotations(tmp_path, database)
    file = tmp_path / "submission.json"
    arguments = [str(file), "--format", "activitynet", "--annotations", str(annotations)]
    assert submission.main(arguments) == 1
    assert "no JSON that can be read" in capsys.readouterr().err
    file.write_text(json.dumps(submission.activitynet(TABLE, CLASSES)))
    assert submission.main(arguments) == 0
    assert "in order: 2 videos" in capsys.readouterr().out
    file.write_text(json.dumps(submission.activitynet({"x": TABLE["v"]}, CLASSES)))
    assert submission.main(arguments) == 1
    shown = capsys.readouterr().out
    assert "video v is missing" in shown
    assert "video x is not in the annotations" in shown
    assert "3 problems" in shown
    assert submission.main([*arguments, "--subset", "unknown"]) == 1
    assert "has no video of unknown" in capsys.readouterr().err
