"""An evaluation on any number of processes, its files, and what is refused."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from core import run
from core.data import SampleError
from projects.actionformer import data, eval, results
from projects.actionformer.config import Config
from projects.actionformer.postprocess import Detections
from tests.actionformer import small
from tests.dist.pool import Team


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset and weights; tests only read them."""
    root = tmp_path_factory.mktemp("eval")
    small.saved(small.configured(root), root / "net.safetensors")
    return root


def settings(root: Path, out: Path, *overrides: str) -> list[str]:
    return [str(root / "config.yaml"), f"ckpt={root / 'net.safetensors'}", f"run.out={out}", *overrides]


def found_by(root: str, *overrides: str) -> dict[str, Any]:
    """What one process of a team evaluates; the result of all."""
    torch.set_num_threads(1)
    cfg = small.configured(Path(root), *overrides)
    benchmark = data.load(cfg.data)
    loader = eval.loader(benchmark, cfg, torch.device("cpu"))
    found = eval.evaluate(small.network(cfg), loader, cfg)
    assert found is not None
    rows = [(video, *map(np.ndarray.tolist, one[:3])) for video, one in sorted(eval.table_of(found).items())]
    return {"rows": rows, "figures": eval.measure(found, benchmark, cfg)}


@pytest.mark.dist
@pytest.mark.parametrize("overrides", [(), ("eval.batch_size=2",)], ids=["one by one", "by length"])
def test_the_same_figures_on_one_two_and_three_processes(
    root: Path, two: Team, three: Team, overrides: tuple[str, ...]
) -> None:
    """Every video once, those without actions too, whichever process it comes to."""
    alone = found_by(str(root), *overrides)
    assert [row[0] for row in alone["rows"]] == list("abcdef")
    assert sum(len(row[2]) for row in alone["rows"]) > 50
    for answer in (*two(found_by, str(root), *overrides), *three(found_by, str(root), *overrides)):
        assert answer == alone


def test_the_numbers_are_those_of_the_metric(root: Path) -> None:
    """In percent, with the keys of the log; repetitions in the truth do not count."""
    answer = found_by(str(root))
    figures = answer["figures"]
    assert list(figures)[:3] == ["mAP", "mAP@0.10", "mAP@0.20"]
    assert {"recall@1x@0.50", "recall@5x@0.70"} <= set(figures)
    values = [value for name, value in figures.items() if name.startswith("mAP@")]
    assert figures["mAP"] == pytest.approx(np.mean(values))
    assert 0 < figures["mAP"] < 100
    cfg = small.configured(root)
    truth = eval.truth_of(data.load(cfg.data), cfg)
    assert truth.videos.count("e") == 1


def test_an_evaluation_through_its_command(root: Path, tmp_path: Path) -> None:
    figures = eval.main(settings(root, tmp_path, "eval.submission=activitynet", "postprocess.max_detections=10"))
    assert json.loads((tmp_path / "results.json").read_text()) == figures
    assert all(name.startswith("validation/") for name in figures)
    predictions = json.loads((tmp_path / "predictions.json").read_text())["results"]
    saved = results.read(tmp_path / "detections.npz")
    assert set(predictions) == set("abcdef")
    for video, rows in predictions.items():
        assert len(rows) == len(saved[video].scores) <= 10
        assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
        assert {row["label"] for row in rows} <= set(small.CLASSES)
    assert set(json.loads((tmp_path / "submission.json").read_text())["results"]) == set("abcdef")
    log = (tmp_path / "run.log").read_text()
    assert "|tIoU = 0.50: mAP = " in log
    assert "Recall@5x = " in log
    html = (tmp_path / "report.html").read_text()
    for words in ("Jump", "Precision over recall", "What the detections are", "Length of the action", "found"):
        assert words in html


def test_a_video_that_cannot_be_read_is_left_out_and_named(root: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    cfg = small.configured(mine)
    small.saved(cfg, mine / "net.safetensors")
    (mine / "features" / "d.npy").write_bytes(b"no array")
    eval.main(settings(mine, tmp_path / "out", "eval.batch_size=2"))
    log = (tmp_path / "out" / "run.log").read_text()
    assert "1 videos could not be read" in log
    assert "d.npy" in log
    assert "d" not in json.loads((tmp_path / "out" / "predictions.json").read_text())["results"]


def test_the_test_set_is_answered_without_a_truth(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no actions in 'test'; eval\.save_only=true"):
        eval.main(settings(root, tmp_path / "a", "data.eval_splits=[test]"))
    assert eval.main(settings(root, tmp_path / "b", "data.eval_splits=[test]", "eval.save_only=true")) == {}
    assert list(json.loads((tmp_path / "b" / "predictions.json").read_text())["results"]) == ["t"]


def test_a_wish_to_stop_leaves_no_numbers(root: Path) -> None:
    cfg = small.configured(root)
    seen: list[Any] = []
    loader = eval.loader(data.load(cfg.data), cfg, torch.device("cpu"))
    batches = (seen.append(batch["id"]) or batch for batch in loader)
    assert eval.evaluate(small.network(cfg), batches, cfg, stopping=lambda: len(seen) >= 2) is None
    assert len(seen) == 2


def test_nothing_found_is_no_error(root: Path, tmp_path: Path) -> None:
    figures = eval.main(settings(root, tmp_path, "postprocess.score_threshold=0.999"))
    assert set(figures.values()) == {0.0}
    assert set(json.loads((tmp_path / "predictions.json").read_text())["results"]) == set("abcdef")


# --------------------------------------------------------------------------------------------------- rules and classes


def test_constraints_and_outside_scores_come_last(root: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({video: [0.1, 0.2, 0.7] for video in "abcdef"}))
    more = (f"postprocess.external_scores={scores}", "postprocess.external_classes=1",
            "postprocess.constraints.max_overlap=0.0", "eval.analysis=false")  # fmt: skip
    eval.main(settings(root, tmp_path, *more))
    rows = json.loads((tmp_path / "predictions.json").read_text())["results"]
    assert {row["label_id"] for found in rows.values() for row in found} == {2}
    for found in rows.values():
        spans = sorted(row["segment"] for row in found)
        assert all(one[1] <= other[0] + 1e-3 for one, other in itertools.pairwise(spans))
    assert len(results.read(tmp_path / "detections.npz")["c"].scores) > len(rows["c"]), "saved before the fusion"
    scores.write_text(json.dumps({"a": [0.1, 0.2, 0.7]}))
    with pytest.raises(ValueError, match=r"scores\.json has no class scores of video 'b'"):
        eval.main(settings(root, tmp_path, *more))


def test_proposals_are_compared_with_actions_of_any_class(root: Path) -> None:
    cfg = small.configured(root, "data.classes=1", "data.dataset=anet")
    benchmark = data.load(cfg.data)
    assert set(np.asarray(eval.truth_of(benchmark, cfg).labels).tolist()) == {0}
    classes = cfg.model_copy(
        update={"postprocess": cfg.postprocess.model_copy(update={"external_scores": Path("x.json")})}
    )
    assert set(np.asarray(eval.truth_of(benchmark, classes).labels).tolist()) == {0, 1, 2}


def test_points_are_measured_by_distance(root: Path) -> None:
    """SnapFormer's events: the middle of the annotated action, within 0.1 to 2 seconds."""
    cfg = small.configured(root, "model.name=snapformer")
    middles = {"a": (2.5, 0), "b": (1.5, 2), "c": (2.5, 0), "d": (5.0, 1), "e": (5.5, 2)}
    table = {v: Detections(np.full((1, 2), t + 0.3), np.array([0.9]), np.array([k])) for v, (t, k) in middles.items()}
    benchmark = data.load(cfg.data)
    figures = eval.figures(eval.score(table, benchmark, cfg), cfg)
    assert figures["mAP@0.20s"] == 0
    assert figures["mAP@0.50s"] == pytest.approx(100 * np.mean([2 / 4, 1 / 3, 2 / 3]), abs=20)
    assert figures["mAP@0.50s"] == figures["mAP@1.00s"] > 0


def test_lengths_that_cannot_be_known_do_not_stop_the_order() -> None:
    class Videos:
        def __len__(self) -> int:
            return 3

        def length(self, index: int) -> int:
            if index == 1:
                raise SampleError("b.npy", "is damaged")
            return 10 * (index + 1)

    assert eval.ByLength(Videos()).order == [2, 0, 1]  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------- files


def test_detections_from_files_of_any_kind(tmp_path: Path) -> None:
    table = {
        "v": Detections(np.array([[0, 1.5], [2, 3]], np.float32), np.array([0.5, 0.25], np.float32), np.array([1, 0]))
    }
    flat = results.flatten(table)
    columns = dict(
        zip(results.FLAT, (flat.videos, *np.asarray(flat.segments).T, flat.labels, flat.scores), strict=True)
    )
    (tmp_path / "eval_results.pkl").write_bytes(pickle.dumps(columns))
    results.write_columns(tmp_path / "flat.npz", table)
    results.write_json(tmp_path / "ours.json", table, ("A", "B"))
    rows = [{"segment": [0, 1.5], "label": "B", "score": 0.5}, {"segment": [2, 3], "label": "A", "score": 0.25}]
    (tmp_path / "named.json").write_text(json.dumps({"v": rows}))
    numbered = [{"segment": [0, 1.5], "label_id": 1, "scores": 0.5}, {"segment": [2, 3], "label_id": 0, "scores": 0.25}]
    (tmp_path / "official.json").write_text(json.dumps({"database": {"v": numbered}}))
    for name in ("eval_results.pkl", "flat.npz", "ours.json", "named.json", "official.json"):
        found = results.read(tmp_path / name, ("A", "B"))["v"]
        np.testing.assert_allclose(found.segments_s, table["v"].segments_s, err_msg=name)
        np.testing.assert_allclose(found.scores, table["v"].scores)
        np.testing.assert_array_equal(found.labels, table["v"].labels)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", b"{", "no JSON that can be read"),
        ("x.json", b"[1]", "expected {video: "),
        ("x.json", b'{"v": [{"label": "C", "score": 1, "segment": [0, 1]}]}', "video 'v': expected label"),
        ("x.json", b'{"v": [{"label": "A", "score": 1}]}', "video 'v'"),
        ("x.npz", b"PK", "no npz that can be read"),
        ("x.pkl", pickle.dumps({"video-id": []}), "expected the columns video-id"),
        ("x.pkl", pickle.dumps({key: [1] for key in results.FLAT} | {"label": []}), "unequal lengths"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        results.read(tmp_path / name, ("A", "B"))
    assert name in str(error.value)


def test_the_table_of_nothing_is_empty() -> None:
    flat = results.flatten({})
    assert (len(flat.videos), np.asarray(flat.segments).shape) == (0, (0, 2))
    assert eval.table_of({"id": []}) == {}


def test_progress_is_shown(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches come through the log's progress, so that a long evaluation says where it is."""
    cfg: Config = small.configured(
        root, f"ckpt={root / 'net.safetensors'}", f"run.out={tmp_path}", "eval.analysis=false"
    )
    names: list[str] = []
    with run.start(cfg, cfg.run, visit=True) as job:
        log = SimpleNamespace(
            info=job.log.info, warning=job.log.warning, progress=lambda items, name: names.append(name) or items
        )
        monkeypatch.setattr(job, "log", log)
        eval.test(cfg, job, data.load(cfg.data))
        monkeypatch.undo()
    assert names == ["validation"]
