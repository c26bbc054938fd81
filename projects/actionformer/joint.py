"""EPIC-KITCHENS actions from two networks, one of verbs and one of nouns, that look at the same points in time.

    python -m projects.actionformer.joint verb=projects/actionformer/configs/epic_slowfast_verb.yaml \\
        noun=projects/actionformer/configs/epic_slowfast_noun.yaml verb_ckpt=FILE noun_ckpt=FILE run.out=runs/epic

At every point the best verbs and nouns make pairs; a pair scores the weighted geometric mean of both, its segment is
the mean of both segments, weighted by their scores, and all pairs go through one suppression. Writes results.json (mAP
of verbs, nouns and actions as the challenge counts them: one list of detections, three labels), predictions.json,
submission.json for the challenge and report.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch
from pydantic import Field

from core import config, dist, metrics, run
from core.checkpoint import write_atomic
from core.config import Section
from core.report import Page
from core.run import Run, RunConfig
from core.step import autocast
from projects.actionformer import data, eval, report, results, submission, weights
from projects.actionformer.annotations import Row
from projects.actionformer.config import Config, PostprocessConfig
from projects.actionformer.data import Benchmark
from projects.actionformer.postprocess import Detections
from projects.actionformer.postprocess.candidates import Candidates, best, probabilities
from projects.actionformer.postprocess.decode import reduce
from projects.actionformer.postprocess.detections import Outputs, placed_all
from projects.actionformer.postprocess.overlap import Floats
from projects.actionformer.results import Table

NOUNS = submission.EPIC_NOUNS
TASKS = ("verb", "noun", "action")


class JointConfig(Section):
    """Verbs and nouns together."""

    run: RunConfig = RunConfig(out=Path("runs/actionformer/joint"))
    verb: Path = Field(Path("projects/actionformer/configs/epic_slowfast_verb.yaml"), description="its configuration")
    noun: Path = Field(Path("projects/actionformer/configs/epic_slowfast_noun.yaml"), description="its configuration")
    verb_ckpt: str = Field("", description="weights of the verb network; empty: the best of its run.out")
    noun_ckpt: str = Field("", description="weights of the noun network; empty: the best of its run.out")
    verbs: int = Field(10, ge=1, description="verbs of a point that make pairs")
    nouns: int = Field(20, ge=1, description="nouns of a point that make pairs")
    noun_weight: float = Field(0.5, ge=0, le=1, description="share of the noun in the geometric mean of the scores")
    batch_size: int = Field(1, ge=1, description="videos at a time")
    save_only: bool = Field(False, description="write the detections without comparing them with a truth")
    postprocess: PostprocessConfig = Field(
        PostprocessConfig(sigma=0.4, min_score=0.001, max_detections=2000), description="of the pairs"
    )
    overrides: tuple[str, ...] = Field((), description="key=value for both configurations, such as data paths")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Find actions with both networks and publish how good they are."""
    cfg = config.parse(JointConfig, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        return test(cfg, job)


def test(cfg: JointConfig, job: Run) -> dict[str, float]:
    """The figures of verbs, nouns and actions; empty when only saved, or asked to stop.

    Raises: ValueError when the two configurations do not have the same videos and points.
    """
    more = [*cfg.overrides, f"eval.batch_size={cfg.batch_size}"]
    verb, noun = (
        _with_weights(config.load(Config, path, more), ckpt)
        for path, ckpt in ((cfg.verb, cfg.verb_ckpt), (cfg.noun, cfg.noun_ckpt))
    )
    benchmarks = data.load(verb.data), data.load(noun.data)
    found = find(cfg, verb, noun, benchmarks[0], job)
    if found is None:
        return {}
    return publish(eval.table_of(found), benchmarks, verb, cfg, job)


def _with_weights(one: Config, ckpt: str) -> Config:
    return one.model_copy(update={"ckpt": ckpt or str(one.run.out)})


@torch.inference_mode()
def find(cfg: JointConfig, verb: Config, noun: Config, benchmark: Benchmark, job: Run) -> dict[str, Any] | None:
    """Actions in every video, labels verb * 300 + noun, merged over processes; None when asked to stop."""
    nets = [weights.load(one, job)[0] for one in (verb, noun)]
    shapes = [(*net.padding.strides, net.padding.max_length) for net in nets]
    if shapes[0] != shapes[1] or verb.data.features != noun.data.features:
        raise ValueError(
            f"{cfg.verb} and {cfg.noun} must share features, pyramid and max_length, so that their points are the same"
        )
    collector, loader = metrics.Collector(), eval.loader(benchmark, verb, job.device)
    with ThreadPoolExecutor(1) as worker:
        before = None
        for batch in job.log.progress(loader, "joint"):
            with autocast(verb.precision, job.device):
                answers = [list(eval.answer(net, batch)) for net in nets]
            after = worker.submit(_pairs, answers, batch, cfg)
            eval.collect(collector, before)
            before = after
            if job.stop_requested:
                break
        eval.collect(collector, before)
    return None if dist.any_true(job.stop_requested) else collector.merge()


def _pairs(answers: Sequence[Any], batch: Any, cfg: JointConfig) -> list[tuple[str, Detections]]:
    found: list[tuple[str, Detections]] = []
    for (group, verbs), (_, nouns) in zip(*answers, strict=True):
        geometry = {key: [batch[key][i] for i in group] for key in eval.GEOMETRY}
        one = [reduce(candidates(verbs, nouns, i, cfg), cfg.postprocess)[0] for i in range(len(group))]
        found += zip([batch["id"][i] for i in group], placed_all(one, geometry, cfg.postprocess), strict=True)
    return found


def candidates(verbs: Outputs, nouns: Outputs, video: int, cfg: JointConfig) -> Candidates:
    """The best pairs of every level: at each point its best verbs with its best nouns."""
    post = cfg.postprocess
    points = verbs.points.float().cpu().numpy()
    scores, segments = zip(*(_one(outputs, video, points, post) for outputs in (verbs, nouns)), strict=True)
    parts, first = [], 0
    for count in verbs.levels:
        rows = slice(first, first + count)
        (v, v_score), (n, n_score) = (
            _best(score[rows], most) for score, most in zip(scores, (cfg.verbs, cfg.nouns), strict=True)
        )
        joint = v_score[:, :, None] ** (1 - cfg.noun_weight) * n_score[:, None] ** cfg.noun_weight
        flat = best(joint.ravel(), post.score_threshold, post.topk)
        point, i, j = np.unravel_index(flat, joint.shape)
        a, b = v_score[point, i, None], n_score[point, j, None]
        both = (a * segments[0][rows][point] + b * segments[1][rows][point]) / (a + b)
        labels = (v[point, i] * NOUNS + n[point, j]).astype(np.int64)
        parts.append(Candidates(both.astype(np.float32), joint.ravel()[flat], labels, point + first))
        first += count
    joined = Candidates(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    long = joined.segments[:, 1] - joined.segments[:, 0] > np.float32(post.min_duration)
    return Candidates(joined.segments[long], joined.scores[long], joined.labels[long], joined.points[long])


def _one(outputs: Outputs, video: int, points: Floats, post: PostprocessConfig) -> tuple[Floats, Floats]:
    """Scores (N,K) and segments (N,2) on the grid of one network."""
    scores = probabilities(outputs.logits[video].cpu(), outputs.mask[video].cpu(), post.temperature)
    offsets = outputs.offsets[video].float().cpu().numpy()
    time, stride = points[:, 0], points[:, 3]
    return scores, np.stack([time - offsets[:, 0] * stride, time + offsets[:, 1] * stride], 1)


def _best(scores: Floats, most: int) -> tuple[Any, Floats]:
    """The best classes (N,most) of every point and their scores."""
    most = min(most, scores.shape[1])
    classes = np.argpartition(-scores, most - 1, axis=1)[:, :most]
    return classes, np.take_along_axis(scores, classes, 1)


def truth(benchmarks: Sequence[Benchmark], subset: str) -> dict[str, metrics.Actions]:
    """The actions of a subset labeled with verbs, with nouns, and with verb * 300 + noun.

    Raises: ValueError when the two annotation files do not list the same segments.
    """
    verbs, nouns = (benchmark.truth(subset) for benchmark in benchmarks)
    if [row[:3] for row in verbs] != [row[:3] for row in nouns]:
        files = " and ".join(str(benchmark.cfg.annotations) for benchmark in benchmarks)
        raise ValueError(
            f"{files} must list the same segments of {subset!r} in the same order, one as verbs, one as nouns"
        )
    pairs = [v._replace(label_id=v.label_id * NOUNS + n.label_id) for v, n in zip(verbs, nouns, strict=True)]
    return {name: _distinct(rows) for name, rows in zip(TASKS, (verbs, nouns, pairs), strict=True)}


def _distinct(rows: Sequence[Row]) -> metrics.Actions:
    segments = np.array([row[1:3] for row in rows], np.float64).reshape(-1, 2)
    actions = metrics.Actions([row.video for row in rows], segments, np.array([row.label_id for row in rows], np.int64))
    keep = metrics.distinct(actions)
    return metrics.Actions(
        [row.video for row, kept in zip(rows, keep, strict=True) if kept],
        segments[keep],
        np.asarray(actions.labels)[keep],
    )


def score(
    table: Table, actions: dict[str, metrics.Actions], tiou: Sequence[float]
) -> dict[str, metrics.DetectionScores]:
    """The evaluation of one list of detections under three labels, as the challenge has it."""
    flat = results.flatten(table)
    labels = np.asarray(flat.labels)
    kinds = {"verb": labels // NOUNS, "noun": labels % NOUNS, "action": labels}
    return {name: metrics.detection_map(actions[name], flat._replace(labels=kinds[name]), tiou) for name in TASKS}


def publish(
    table: Table, benchmarks: Sequence[Benchmark], verb: Config, cfg: JointConfig, job: Run
) -> dict[str, float]:
    """Write what was found and how good it is; the figures by `subset/task_mAP...`, in percent."""
    part, main_process = verb.data.eval_splits[0], job.world.rank == 0
    names = _Pairs(benchmarks[0].classes, benchmarks[1].classes)
    videos = [video.id for video in benchmarks[0].annotations.of(verb.data.eval_splits[:1])]
    if main_process:
        results.write_json(job.out / "predictions.json", table, names)
        answers = {video: table.get(video, submission.nothing()) for video in videos}
        write_atomic(job.out / "submission.json", simplejson.dumps(submission.epic(answers)) + "\n")
        job.log.info(f"{len(table)} videos: {job.out / 'submission.json'}")
    if cfg.save_only:
        return {}
    actions = truth(benchmarks, part)
    scores = score(table, actions, benchmarks[0].layout.tiou)
    values: dict[str, float] = {}
    for name, one in scores.items():
        values[f"{part}/{name}_mAP"] = 100 * one.average_map
        values |= {f"{part}/{name}_mAP@{at:.2f}": 100 * float(v) for at, v in zip(one.thresholds, one.map, strict=True)}
        job.log.info(
            f"{name}: " + " ".join(f"{100 * v:.2f}" for v in one.map) + f", average {100 * one.average_map:.2f}"
        )
    if main_process:
        write_atomic(job.out / "results.json", simplejson.dumps(values, indent=2, ignore_nan=True) + "\n")
        page = Page(f"{benchmarks[0].layout.title}, {part}: verbs, nouns and actions", benchmarks[0].describe())
        page.facts({f"{name} mAP, %": 100 * one.average_map for name, one in scores.items()})
        page.table("All thresholds", [
            {"tIoU": float(at), **{f"{name} mAP, %": 100 * float(scores[name].map[k]) for name in TASKS}}
            for k, at in enumerate(scores["action"].thresholds)
        ], digits=4)  # fmt: skip
        count, durations = verb.eval.timelines, benchmarks[0].durations
        for name, tracks, duration_s in report.timelines(table, actions["action"], names, durations, count):
            page.timeline(name, tracks, duration_s)
        page.save(job.out / "report.html")
        job.log.info(f"report: {job.out / 'report.html'}")
    return values


class _Pairs(Sequence[str]):
    """The names of all actions by their number, without making 29,100 of them."""

    def __init__(self, verbs: Sequence[str], nouns: Sequence[str]) -> None:
        self.verbs, self.nouns = verbs, nouns

    def __len__(self) -> int:
        return len(self.verbs) * NOUNS

    def __getitem__(self, label: Any) -> Any:
        verb, noun = divmod(label, NOUNS)
        return f"{results.name_of(verb, self.verbs)} {results.name_of(noun, self.nouns)}"


if __name__ == "__main__":
    main()
