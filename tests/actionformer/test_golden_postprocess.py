"""From points to detections as the official code: suppression, voting, class scores, constraints, whole networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from projects.actionformer import data
from projects.actionformer.config import PostprocessConfig
from projects.actionformer.constraints import (
    TemporalConstraints,
    enforce_class_constraints,
    merge_close_detections,
)
from projects.actionformer.geometry import Geometry
from projects.actionformer.postprocess import Detections, batched, decode, suppress, vote
from projects.actionformer.postprocess.external import fuse
from projects.actionformer.postprocess.overlap import diou
from tests.actionformer import golden
from tests.actionformer.matching import compare
from tests.support import Case, Parity, cases

pytestmark = pytest.mark.golden

NMS = [(case, name) for case in cases("actionformer", "nms*") for name in case.json("case.json")]
FUSION = [(case, name) for case in cases("actionformer", "score_fusion*") for name in case.json("case.json")["cases"]]
UTILITIES = cases("actionformer", "utilities*")
NETWORKS = [
    case
    for case in cases("actionformer")
    if {"constants.json", "expected.npz", "keys.json"} <= {path.name for path in case.path.iterdir()}
    and "videos" in case.json("case.json")
    and any(key.endswith(".scores") for key in case.expected)
]


def settings(params: dict[str, Any]) -> PostprocessConfig:
    """The official arguments in our words."""
    return PostprocessConfig(
        nms="soft" if params["use_soft_nms"] else "hard",
        iou_threshold=params["iou_threshold"],
        min_score=params["min_score"],
        max_detections=params["max_seg_num"],
        per_class=params["multiclass"],
        sigma=params["sigma"],
        voting=params["voting_thresh"],
        diou=params.get("use_diou_nms", False),
        class_sigma=params.get("class_sigma") or {},
    )


def as_set(segments: Any, scores: Any, labels: Any) -> np.ndarray:
    """Rows in an order of their own, for lists whose order tells nothing."""
    rows = np.column_stack([np.round(scores, 5), labels, segments])
    return rows[np.lexsort(rows.T[::-1])]


@pytest.mark.parametrize(("case", "name"), NMS, ids=[f"{case.path.name}-{name}" for case, name in NMS])
def test_suppression(case: Case, name: str, parity: Parity) -> None:
    expected, about = case.expected, case.json("case.json")[name]
    cfg = settings(about["params"])
    segments, scores, labels = (expected[f"in.{about['input']}.{key}"] for key in ("segs", "scores", "labels"))
    wanted = [expected[f"out.{name}.{key}"] for key in ("segs", "scores", "labels")]
    kept = suppress(segments, scores, labels, cfg)
    spans = segments[kept.numbers]
    if not cfg.per_class and cfg.voting > 0:
        spans = vote(spans, segments, scores, cfg.voting)
    found = (spans, kept.scores, labels[kept.numbers])
    if len(np.unique(wanted[1])) < len(wanted[1]):  # equal scores: the order is the machine's
        parity.check("rows", as_set(*found), as_set(*wanted), atol=1e-5)
    else:
        for key, ours, theirs in zip(("segments", "scores", "labels"), found, wanted, strict=True):
            parity.check(key, ours, theirs, atol=1e-6, rtol=2e-7)


@pytest.mark.parametrize(("case", "name"), NMS, ids=[f"{case.path.name}-{name}" for case, name in NMS])
def test_suppression_of_all_rows_together(case: Case, name: str, parity: Parity) -> None:
    """What a GPU runs, here on the CPU; equal scores may be picked in another order, so ties are left out."""
    expected, about = case.expected, case.json("case.json")[name]
    cfg = settings(about["params"])
    segments, scores, labels = (expected[f"in.{about['input']}.{key}"] for key in ("segs", "scores", "labels"))
    wanted = [expected[f"out.{name}.{key}"] for key in ("segs", "scores", "labels")]
    tied = len(np.unique(wanted[1])) < len(wanted[1])
    if not batched.supports(cfg):
        cfg = cfg.model_copy(update={"diou_order": "decayed"})
        kept = suppress(segments, scores, labels, cfg)
        spans = segments[kept.numbers]
        spans = vote(spans, segments, scores, cfg.voting) if not cfg.per_class and cfg.voting > 0 else spans
        wanted = [spans, kept.scores, labels[kept.numbers]]
    rows = [torch.from_numpy(values)[None].expand(3, *values.shape) for values in (segments, scores, labels)]
    index, values = batched.suppress(*rows, cfg)
    found = rows[0].gather(1, index[..., None].expand(-1, -1, 2))
    if not cfg.per_class and cfg.voting > 0:
        found = batched.vote(found, rows[0], rows[1], cfg)
    for row in range(3):
        there = values[row] > 0
        parity.check(f"{row}.count", int(there.sum()), len(wanted[1]))
        parity.check(f"{row}.scores", values[row][there].sort().values, np.sort(wanted[1]), atol=1e-6)
        if not tied:
            parity.check(f"{row}.segments", found[row][there], wanted[0], atol=1e-6, rtol=3e-7)
            parity.check(f"{row}.labels", rows[2][row].gather(0, index[row])[there], wanted[2])


@pytest.mark.parametrize("case", cases("actionformer", "nms*"), ids=lambda case: case.path.name)
def test_operators_alone(case: Case, parity: Parity) -> None:
    expected = case.expected
    if "raw.nms.inds" not in expected:
        pytest.skip("this case has no answers of single operators")
    segments, scores = expected["in.b.segs"], expected["in.b.scores"]
    nothing = np.zeros(len(scores), np.int64)
    soft = PostprocessConfig(nms="soft", sigma=0.5, min_score=0.01)
    kept = suppress(segments, scores, nothing, soft)
    parity.check("soft.order", kept.numbers, expected["raw.softnms_gauss.inds"])
    parity.check("soft.scores", kept.scores, expected["raw.softnms_gauss.dets"][:, 2], atol=1e-6)
    hard = PostprocessConfig(nms="hard", iou_threshold=0.4, min_score=0.0)
    parity.check("hard.order", suppress(segments, scores, nothing, hard).numbers, expected["raw.nms.inds"])
    matrix = expected["raw.diou_matrix"]
    parity.check("diou", diou(segments[: len(matrix)], segments[20 : 20 + matrix.shape[1]]), matrix, atol=1e-6)
    voted = expected["raw.vote"]
    parity.check("vote", vote(segments[: len(voted)], segments, scores, 0.5), voted, atol=1e-6, rtol=2e-7)


@pytest.mark.parametrize(("case", "name"), FUSION, ids=[f"{case.path.name}-{name}" for case, name in FUSION])
def test_class_scores_of_videos(case: Case, name: str, parity: Parity) -> None:
    expected, about = case.expected, case.json("case.json")
    limits = {"classes": about["cases"][name]["topk"], "most": about["cases"][name]["num_pred"]}
    videos, parts = [], []
    for video in sorted(set(expected["in.video-id"].tolist())):
        own = expected["in.video-id"] == video
        segments = np.stack([expected["in.t-start"][own], expected["in.t-end"][own]], 1)
        found = Detections(segments, expected["in.score"][own], expected["in.label"][own])
        parts.append(fuse(found, np.array(about["cls_scores"][video]), **limits))
        videos += [video] * len(parts[-1].scores)
    assert videos == expected[f"{name}.video-id"].tolist()
    segments, scores, labels = (np.concatenate([part[k] for part in parts]) for k in range(3))
    for key, ours in (("t-start", segments[:, 0]), ("t-end", segments[:, 1]), ("label", labels), ("score", scores)):
        parity.check(key, ours, expected[f"{name}.{key}"], atol=1e-9)


def numbered(value: Any) -> Any:
    """Class ids, which are strings as keys of JSON, as numbers."""
    return {int(key): one for key, one in value.items()} if isinstance(value, dict) else value


def check_rows(parity: Parity, name: str, found: dict[str, list[Any]], expected: dict[str, list[Any]]) -> None:
    assert list(found["video-id"]) == expected["video-id"], name
    for key in ("t-start", "t-end", "label", "score"):
        parity.check(f"{name}.{key}", found[key], expected[key], atol=1e-6)


@pytest.mark.parametrize("case", UTILITIES, ids=lambda case: case.path.name)
def test_constraints(case: Case, parity: Parity) -> None:
    """The fork takes `ordering` and never looks at it; ours does unless it is told not to."""
    about = case.json("case.json")
    given = about["temporal_constraints"]["input"]
    for name, one in about["temporal_constraints"]["cases"].items():
        rules = {key: numbered(value) for key, value in one["kwargs"].items()}
        check_rows(parity, name, TemporalConstraints(**rules, ignore_ordering=True).apply(given), one["result"])
    one = about["enforce_class_constraints"]
    check_rows(parity, "enforce", enforce_class_constraints(given, **one["args"]), one["result"])
    for k, one in enumerate(about["merge_close_detections"]):
        check_rows(parity, f"merge.{k}", merge_close_detections(given, **one["args"]), one["result"])
    assert TemporalConstraints().apply(about["empty"]) == about["empty"]


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.path.name)
def test_networks_find_what_the_official_ones_find(case: Case, parity: Parity) -> None:
    net, expected, cfg = golden.network(case), case.expected, golden.config_of(case).postprocess
    points = any(key.endswith(".segments_grid") for key in expected)
    for video in case.json("case.json")["videos"]:
        name = video["video_id"]
        geometry = Geometry(video["fps"], video["feat_stride"], video["feat_num_frames"])
        sample = data.sample_of(name, golden.video(case, name, video["T"]), geometry, video["duration"])
        batch = data.collate([sample])
        with torch.no_grad():
            outputs = net(batch["features"], batch["mask"])
        settings = cfg.model_copy(update={"units": "features"}) if points else cfg
        found = decode(outputs, batch, settings)[0]
        segments = expected[f"{name}.{'segments_grid' if points else 'segments'}"]
        compare(parity, name, found[:3], (segments, expected[f"{name}.scores"], expected[f"{name}.labels"]))
