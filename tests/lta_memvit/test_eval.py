"""Figures, draws and files of an evaluation, whatever the batches and however many processes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import simplejson
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import dist, metrics
from projects.lta_memvit import data, eval, report
from projects.lta_memvit.config import Config, EvalConfig
from projects.lta_memvit.sequences import draw, prior
from tests.dist.pool import Team
from tests.lta_memvit.tiny import configured, network, saved, settings, started

COLUMNS = ("verb_futures", "noun_futures", "verb_best", "noun_best", "verb_rank", "noun_rank", "verb", "noun")


# --- draws


def scores(count: int = 6, future: int = 4, classes: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, future, classes, generator=torch.Generator().manual_seed(seed))


def test_draws_of_a_window_depend_on_its_id_alone() -> None:
    verb, noun, ids, cfg = scores(), scores(classes=9, seed=1), list("abcdef"), EvalConfig()
    together = draw(verb, noun, ids, cfg)
    assert together.verb.shape == together.noun.shape == (6, 5, 4)
    order = [4, 0, 5, 2]
    apart = [draw(verb[i : i + 1], noun[i : i + 1], [ids[i]], cfg) for i in order]
    assert torch.equal(torch.cat([one.verb for one in apart]), together.verb[order])
    assert torch.equal(torch.cat([one.noun for one in apart]), together.noun[order])
    assert not torch.equal(draw(verb, noun, ids[::-1], cfg).verb, together.verb)
    assert not torch.equal(draw(verb, noun, ids, cfg.model_copy(update={"seed": 1})).verb, together.verb)


def test_draws_follow_the_shares() -> None:
    cfg, ids = EvalConfig(sequences=2000), ["x"]
    logits = torch.tensor([0.5, 0.3, 0.2, 0.0]).log()[None, None]
    found = draw(logits, logits, ids, cfg)
    shares = np.bincount(found.verb.flatten().numpy(), minlength=4) / 2000
    assert shares == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.04)
    assert not torch.equal(found.verb, found.noun)
    cold = draw(logits, logits, ids, cfg.model_copy(update={"temperature": 0.1})).verb
    assert (cold == 0).float().mean() > 0.99
    nucleus = draw(logits, logits, ids, cfg.model_copy(update={"top_p": 0.6})).verb.flatten().numpy()
    assert np.bincount(nucleus, minlength=4) / 2000 == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)
    first = draw(logits, logits, ids, cfg.model_copy(update={"top_p": 0.5})).verb
    assert (first == 0).all()


def test_a_single_future_is_the_likeliest() -> None:
    verb, noun = scores(), scores(seed=1)
    found = draw(verb, noun, list("abcdef"), EvalConfig(sequences=1))
    assert torch.equal(found.verb, verb.argmax(-1)[:, None])
    assert torch.equal(found.noun, noun.argmax(-1)[:, None])


@given(st.integers(1, 9), st.integers(0, 99))
def test_draws_are_classes(classes: int, seed: int) -> None:
    logits = scores(3, 4, classes, seed) * 50  # many shares are 0
    for sampling in ("id", "reference"):
        cfg = EvalConfig(sampling=sampling)
        found = draw(logits, logits, list("abc"), cfg, torch.Generator().manual_seed(0))
        for ids in found:
            assert ids.dtype == torch.int64
            assert ids.min() >= 0
            assert ids.max() < classes
            assert (logits.softmax(-1).unsqueeze(1).expand(-1, 5, -1, -1).gather(-1, ids[..., None]) > 0).all()


def test_windows_without_a_clip_are_drawn_from_counts() -> None:
    found = prior(([0, 3, 0, 1], [0, 0, 0]), ["a", "b"], 50, EvalConfig(temperature=0.1))
    assert found.verb.shape == found.noun.shape == (2, 5, 50)
    assert set(found.verb.flatten().tolist()) == {1, 3}
    assert (found.verb == 1).float().mean() == pytest.approx(0.75, abs=0.08)  # no temperature changes it
    assert set(found.noun.flatten().tolist()) == {0, 1, 2}  # nothing was counted: all alike


# --- figures


def test_ranks_count_the_likelier_classes() -> None:
    logits = torch.tensor([[[0.1, 0.9, 0.9, 0.2]]])
    ranks = [eval._facts(logits, torch.tensor([[label]]))["rank"].item() for label in range(-1, 4)]
    assert ranks == [4, 3, 0, 1, 2]  # of equal scores the first is likelier; an unknown label is behind all
    facts = eval._facts(logits, torch.tensor([2]))
    assert facts["best"].item() == 1
    assert facts["share"].item() == pytest.approx(float(logits.softmax(-1)[0, 0, 1]))


def made_up(count: int = 7, future: int = 4, *, seed: int = 0) -> dict[str, Any]:
    """What an evaluation would have found."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {
        "id": [f"{i}" for i in range(count)], "batch": ["0", "0", "0", "1", "1", "1", "2"][:count],
        "clamped": np.zeros(count),
    }  # fmt: skip
    for head, classes in (("verb", 3), ("noun", 4)):
        found[head] = rng.integers(0, classes, (count, future))
        found[f"{head}_rank"] = rng.integers(0, classes, (count, future))
        found[f"{head}_best"] = rng.integers(0, classes, (count, future))
        found[f"{head}_share"] = rng.random((count, future))
        found[f"{head}_futures"] = rng.integers(0, classes, (count, 5, future))
        found[f"{head}_observed"] = rng.integers(0, classes, (count, 2))
    return found


def test_figures_are_those_of_the_definitions() -> None:
    found, cfg = made_up(), Config()
    values = eval.measure(found, cfg)
    for kind in ("verb", "noun"):
        curve = metrics.edit_distance_at(found[f"{kind}_futures"], found[kind]).mean(0)
        assert [values[f"ed_{kind}_at_{z}"] for z in range(1, 5)] == pytest.approx(curve.tolist())
        assert values[f"ed_{kind}"] == pytest.approx(curve[-1])
        assert values[f"aued_{kind}"] == pytest.approx(float(metrics.aued(curve)))
        assert values[f"{kind}_error_at_2"] == pytest.approx(100 * (found[f"{kind}_rank"][:, 1] > 0).mean())
        assert values[f"{kind}_error"] == pytest.approx(100 * (found[f"{kind}_rank"] > 0).mean())
    both = (found["verb_rank"] > 0) | (found["noun_rank"] > 0)
    assert values["action_error"] == pytest.approx(100 * both.mean())
    pairs = [[tuple(p) for p in zip(v, n, strict=True)] for v, n in zip(found["verb"], found["noun"], strict=True)]
    number = {pair: i for i, pair in enumerate({(v, n) for v in range(3) for n in range(4)})}
    truth = np.array([[number[pair] for pair in row] for row in pairs])
    futures = np.vectorize(lambda v, n: number[v, n])(found["verb_futures"], found["noun_futures"])
    assert values["ed_action"] == pytest.approx(metrics.edit_distance_at(futures, truth)[:, -1].mean())
    assert values["ed_action"] >= max(values["ed_verb"], values["ed_noun"])
    assert values["damerau_ed_verb"] <= values["ed_verb"]
    last = np.repeat(found["verb_observed"][:, -1:, None], 4, 2)
    assert values["repeat_ed_verb"] == pytest.approx(metrics.edit_distance_at(last, found["verb"])[:, -1].mean())


def test_the_mean_over_batches_gives_a_smaller_batch_the_same_weight() -> None:
    found = made_up()
    values = eval.measure(found, Config(eval=EvalConfig(average="batches")))
    per_sample = metrics.edit_distance_at(found["verb_futures"], found["verb"])[:, -1]
    assert values["ed_verb"] == pytest.approx(
        np.mean([per_sample[:3].mean(), per_sample[3:6].mean(), per_sample[6:].mean()])
    )
    assert values["ed_verb"] != pytest.approx(eval.measure(found, Config())["ed_verb"])


def test_a_part_without_labels_has_no_figures_and_an_empty_one_is_an_error() -> None:
    found = made_up()
    found["verb"] = np.full_like(found["verb"], -1)
    assert eval.measure(found, Config()) == {}
    with pytest.raises(ValueError, match="no sample could be read"):
        eval.measure({"id": []}, Config())


def test_what_repeats_is_left_out_where_the_observed_actions_are_unknown() -> None:
    found = made_up()
    found["noun_observed"][:] = -1
    values = eval.measure(found, Config())
    assert "repeat_ed_verb" in values
    assert "repeat_ed_noun" not in values
    assert "repeat_ed_action" not in values


# --- evaluation


def evaluated(root: str, out: str, *more: str) -> dict[str, Any]:
    """The rows of an evaluation; every process of a pool calls it."""
    cfg = configured(Path(root), Path(out), *more)
    benchmark = data.load(cfg.data)
    with mock.patch.object(dist, "shutdown"), started(cfg) as job:
        batches = eval.loader(cfg.eval.split, network(cfg, benchmark.classes), benchmark, cfg, job)
        found = eval.evaluate(network(cfg, benchmark.classes), batches, cfg)
    assert found is not None
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["id"] == b["id"]
    for name in COLUMNS:
        if name in a:
            assert np.array_equal(a[name], b[name]), name


BACKBONES = {"slowfast": [], "memory": ["model.backbone=memvit_nano", "memory.sampler=all"]}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_batches_do_not_change_an_evaluation(made: Path, tmp_path: Path, backbone: str) -> None:
    more = BACKBONES[backbone]
    found = [evaluated(str(made), str(tmp_path / f"{size}"), *more, f"eval.batch_size={size}") for size in (1, 4, 5)]
    assert len(found[0]["id"]) == 27
    assert found[0]["verb_futures"].shape == (27, 5, 3)
    assert len(np.unique(found[0]["verb_best"])) > 1
    same(found[1], found[0])
    same(found[2], found[0])


@pytest.mark.dist
@pytest.mark.parametrize("backbone", BACKBONES)
def test_processes_do_not_change_an_evaluation(
    two: Team, three: Team, made: Path, tmp_path: Path, backbone: str
) -> None:
    alone = evaluated(str(made), str(tmp_path / "1"), *BACKBONES[backbone])
    for size, team in ((2, two), (3, three)):
        for found in team(evaluated, str(made), str(tmp_path / f"{size}"), *BACKBONES[backbone]):
            same(found, alone)


def test_recognition_is_evaluated_and_views_are_joined(made: Path, tmp_path: Path) -> None:
    more = ("task=recognition", "clip.frames=4")
    one = evaluated(str(made), str(tmp_path / "a"), *more)
    assert one["verb_rank"].shape == (39, 1)
    cfg = configured(made, tmp_path, *more)
    values = eval.measure(one, cfg)
    assert set(values) == {"verb_error", "noun_error", "action_error", "verb_top5_error", "noun_top5_error"}
    assert values["noun_top5_error"] == 0  # there are five nouns
    shares = {
        method: evaluated(str(made), str(tmp_path / method), *more, "eval.views=3", f"eval.ensemble={method}")
        for method in ("sum", "max")
    }
    net = network(cfg)
    views = data.load(cfg.data).recognition("val", cfg.clip, views=3)
    for row in (0, 17):
        index = views.ids.index(one["id"][row])
        video = data.transform(cfg.clip)({"video": views.sample(index, random.Random(0))["video"][None]}, [None])
        with torch.inference_mode():
            logits = net(video["video"][0]).verb.softmax(-1)
        assert shares["sum"]["verb_share"][row, 0] == pytest.approx(float(logits.mean(0).max()), abs=1e-5)
        best = logits.amax(0)
        assert shares["max"]["verb_share"][row, 0] == pytest.approx(float(best.max() / best.sum()), abs=1e-5)


def test_an_evaluation_that_is_asked_to_stop_says_nothing(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path)
    benchmark = data.load(cfg.data)
    net = network(cfg, benchmark.classes)
    with started(cfg) as job:
        batches = eval.loader("val", net, benchmark, cfg, job)
        assert eval.evaluate(net, batches, cfg, stopping=lambda: True) is None


def test_a_part_of_which_nothing_is_there_is_an_error(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path, f"data.clips={tmp_path / 'nowhere'}")
    with started(cfg) as job, pytest.raises(ValueError, match="no sample of the val part can be read"):
        eval.loader("val", network(cfg), data.load(cfg.data), cfg, job)


# --- the command


def test_the_command_writes_figures_submission_and_report(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path / "run")
    path = saved(cfg, tmp_path / "net.safetensors", data.load(cfg.data))
    results = eval.main(settings(made, tmp_path / "run", f"ckpt={path}"))
    assert results["val/samples_scored"] == results["val/samples_expected"] == 27
    assert 0 < results["val/ed_verb"] < results["val/ed_action"] <= 1
    assert simplejson.loads((tmp_path / "run/results.json").read_text()) == results
    outputs = simplejson.loads((tmp_path / "run/outputs.json").read_text())
    assert list(outputs) == [window.id for window in data.load(cfg.data).windows("val")]
    assert np.array(outputs["val-0001_5"]["verb"]).shape == (5, 3)
    page = (tmp_path / "run/report.html").read_text()
    for words in ("Edit distance by length", "Confusions of the first forecast action: verb", "verb seen, then true"):
        assert words in page
    assert "complete and well formed" in (tmp_path / "run/run.log").read_text()


def test_the_test_part_gets_a_complete_submission_though_a_clip_is_missing(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "clips", tmp_path / "clips")
    (tmp_path / "clips" / "test-0001.mp4").unlink()
    (tmp_path / "clips" / "val-0000.mp4").unlink()
    cfg = configured(made, tmp_path / "run", f"data.clips={tmp_path / 'clips'}")
    benchmark = data.load(cfg.data)
    path = saved(cfg, tmp_path / "net.safetensors", benchmark)
    more = (f"ckpt={path}", f"data.clips={tmp_path / 'clips'}", "eval.split=test")
    results = eval.main(settings(made, tmp_path / "run", *more))
    assert results == {"test/samples_expected": 9, "test/samples_scored": 9}
    outputs = simplejson.loads((tmp_path / "run/outputs.json").read_text())
    assert list(outputs) == [window.id for window in benchmark.windows("test")]
    drawn = np.array([outputs[f"test-0001_{k}"]["noun"] for k in range(1, 10)])
    nouns = {action.noun for action in benchmark.actions("train")}
    assert set(drawn.flatten().tolist()) <= nouns
    log = (tmp_path / "run/run.log").read_text()
    assert "9 windows have no readable clip (test-0001_1, test-0001_2," in log
    assert "complete and well formed" in log
    assert "no public labels" in (tmp_path / "run/report.html").read_text()


def test_a_damaged_clip_is_named_and_drawn(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "clips", tmp_path / "clips")
    (tmp_path / "clips" / "val-0002.mp4").write_bytes(b"nothing")
    cfg = configured(made, tmp_path / "run", f"data.clips={tmp_path / 'clips'}")
    path = saved(cfg, tmp_path / "net.safetensors", data.load(cfg.data))
    results = eval.main(settings(made, tmp_path / "run", f"ckpt={path}", f"data.clips={tmp_path / 'clips'}"))
    assert (results["val/samples_expected"], results["val/samples_scored"]) == (27, 18)
    assert len(simplejson.loads((tmp_path / "run/outputs.json").read_text())) == 27
    assert "val-0002.mp4" in (tmp_path / "run/report.html").read_text()


def test_the_repeating_baseline_says_the_recognized_action_again(made: Path, tmp_path: Path) -> None:
    recognition = configured(made, tmp_path / "r", "task=recognition")
    path = saved(recognition, tmp_path / "net.safetensors", data.load(recognition.data))
    more = (f"ckpt={path}", "model.aggregator=repeat", "data.inputs=1", "eval.sequences=1")
    results = eval.main(settings(made, tmp_path / "run", *more))
    outputs = simplejson.loads((tmp_path / "run/outputs.json").read_text())
    recognized = evaluated(str(made), str(tmp_path / "e"), "task=recognition")
    best = dict(zip(recognized["id"], recognized["verb_best"][:, 0].tolist(), strict=True))
    assert len(outputs) == 30
    assert all(entry["verb"] == [[best[name]] * 3] for name, entry in outputs.items())
    assert 0 < results["val/ed_action"] <= 1


def test_recognition_has_a_report_of_its_own(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path / "run", "task=recognition")
    path = saved(cfg, tmp_path / "net.safetensors", data.load(cfg.data))
    results = eval.main(settings(made, tmp_path / "run", f"ckpt={path}", "task=recognition"))
    assert results["val/samples_scored"] == 39
    assert not (tmp_path / "run/outputs.json").exists()
    page = (tmp_path / "run/report.html").read_text()
    assert "Surest mistakes" in page
    assert "taken for" in page


def test_the_actions_of_an_example_are_drawn_one_after_the_other(made: Path) -> None:
    benchmark = data.load(configured(made, made).data)
    edges = report.edges(benchmark.windows("val")[0])
    assert edges == [0, 1, 2, 3, 4, 5]
    overlapping = benchmark.windows("val")[0]
    late = overlapping._replace(inputs=tuple(action._replace(start_s=9.0) for action in overlapping.inputs))
    assert report.edges(late) == [9, 9, 9, 9, 9, 9]
