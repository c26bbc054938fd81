"""A rehearsal takes one batch through everything, and leaves nothing behind that a run would mind."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import simplejson

from projects.lta_memvit import data, eval, rehearsal, train
from tests.lta_memvit.test_train import MEMVIT
from tests.lta_memvit.tiny import configured, settings

CACHED = ("model.freeze=true", "features.source=cache", "features.views=1")


@pytest.fixture(autouse=True)
def _without_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.summary, "describe", lambda *_, **__: "")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "more",
    [(*MEMVIT, "model.precise_bn=0"), ("task=recognition", "model.precise_bn=200"), (), CACHED],
    ids=["memvit recognition", "precise statistics", "forecasting", "features"],
)
def test_one_batch_goes_the_whole_way_and_no_weights_stay(made: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """A run that is there, and its features, are not touched; a second rehearsal is a first one again."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("of a run\n")
    args = settings(made, tmp_path / "run", *more, "train.fast_dev_run=true", "optim.epochs=40", "loader.batch_size=3")
    seen: list[int] = []
    answer = train.answer

    def counted(forward: Any, batch: Any, cfg: Any) -> Any:
        seen.append(len(batch["id"]))
        return answer(forward, batch, cfg)

    for _ in range(2):
        seen.clear()
        with mock.patch.object(train, "answer", counted):
            figures = train.main(args)
        assert seen == [3]
        recognition = any("recognition" in word for word in more)
        assert ("val/verb_error" if recognition else "val/ed_action") in figures
        out = tmp_path / "run" / rehearsal.FOLDER
        left = {path.name for path in out.iterdir()}
        assert {"report.html", "results.json", "run.log", "metrics.jsonl"} <= left
        assert not {"checkpoints", "features"} & left
        assert simplejson.loads((out / "results.json").read_text())["val/samples_scored"] <= 6
        if not recognition:
            assert "complete and well formed" in (out / "run.log").read_text()
    assert content(tmp_path / "run")["config.yaml"] == b"of a run\n"
    assert not (tmp_path / "features").exists()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", rehearsal.FOLDER}


def test_a_rehearsal_finds_what_would_end_a_run_later(made: Path, tmp_path: Path) -> None:
    """Such as a report that fails: seen within seconds, not after days."""
    args = settings(made, tmp_path / "run", "train.fast_dev_run=true")
    with (
        mock.patch.object(eval.report, "write", side_effect=ValueError("no pen")),
        pytest.raises(ValueError, match="no pen"),
    ):
        train.main(args)
    assert train.main(args)


@pytest.mark.parametrize(("batch", "processes", "windows"), [(2, 1, 2), (4, 1, 4), (4, 2, 8), (5, 1, 8)])
def test_a_shortened_part_has_a_batch_for_every_process(
    made: Path, tmp_path: Path, batch: int, processes: int, windows: int
) -> None:
    cfg = configured(made, tmp_path, f"loader.batch_size={batch}", "eval.batch_size=1")
    found = rehearsal.shortened(data.load(cfg.data), cfg, processes)
    assert len(found.windows("train")) == windows  # of four clips: one of each, or two of each
    assert len(found.windows("val")) == processes
    assert len(found.clips("train")) == min(4, batch * processes)
    whole = data.load(cfg.data).clips("train")
    assert all(actions == whole[name][: len(actions)] for name, actions in found.clips("train").items())


def test_clips_that_are_missing_or_too_short_are_passed_over(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path, "data.future=12", "loader.batch_size=1")
    assert rehearsal.shortened(data.load(cfg.data), cfg, 1).parts["train"] == []
    cfg = configured(made, tmp_path, "loader.batch_size=1")
    benchmark = data.load(cfg.data)
    benchmark.__dict__["files"] = frozenset({"train-0002"})
    assert set(rehearsal.shortened(benchmark, cfg, 1).clips("train")) == {"train-0002"}


def test_validation_is_looked_at_before_the_first_epoch_only(made: Path, tmp_path: Path) -> None:
    calls: list[int] = []
    evaluate = eval.evaluate

    def counted(net: Any, batches: Any, cfg: Any, **more: Any) -> Any:
        found = evaluate(net, batches, cfg, **more)
        calls.append(len(found["id"]))
        return found

    base = settings(made, tmp_path / "run", "task=recognition", "train.sanity_batches=2")
    with mock.patch.object(eval, "evaluate", counted):
        train.main(base)
        assert calls == [8, 39]
        train.main([*base, "optim.epochs=2"])  # goes on
        assert calls == [8, 39, 39]
        train.main(settings(made, tmp_path / "other", "task=recognition", "train.sanity_batches=0"))
        assert calls == [8, 39, 39, 39]
