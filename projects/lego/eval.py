"""How good are the generated frames? FID, PSNR, LPIPS, CLIP, EgoVLP, EgoVLP+ and BLIP scores of a folder of frames.

    python -m projects.lego.eval projects/lego/configs/ego4d_ldm.yaml eval.images=logs/lego_ego4d-e=0-s=100-si=1.5

reads `images/<clip>/<action>/<frame>.jpg` beside the true frames and writes, into `metric/` beside `images/`, as the
original does, metric.json (updated, never replaced) and the captions blip.json and blip-l.json; and ours: scores.csv (a
row for each frame), results.json (with intervals) and report.html. Each score needs weights in `eval.weights`: a
missing file is named, and the other scores are computed. Several processes share the frames.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch
from torch import Tensor

from core import config, dist, run
from core.checkpoint import write_atomic
from core.checkpoint.files import replacing
from core.data import Loader
from core.metrics import Collector
from core.run import Run
from projects.lego import data, generate, report, weights
from projects.lego.config import Config
from projects.lego.data import Record
from projects.lego.metrics.catalog import NAMES, Makers
from projects.lego.metrics.places import MissingWeightsError
from projects.lego.metrics.scores import Batch, Captioned, Embeddings, Memory, Score

RESAMPLED = 1000  # bootstrap samples for the 95 % interval of a mean


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Evaluate the frames of `eval.images`, or those that `ckpt` (or the run) generated."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        return evaluate(cfg, job)


def evaluate(cfg: Config, job: Run) -> dict[str, float]:
    """Every score whose weights are there, published beside the frames; empty when the run was asked to stop.

    Raises:
        ValueError: for frames that are missing, or more than one dataset.
    """
    if len(cfg.data.datasets) > 1:
        raise ValueError(
            f"one dataset is evaluated at a time, not {', '.join(cfg.data.datasets)}: data.datasets=[ego4d]"
        )
    images = folder(cfg, job)
    records = data.load(cfg.data, cfg.sample.split)
    frames = Frames(records, images, cfg)
    job.log.info(f"{len(records)} frames of {images}")

    def memory(name: str, network: Path) -> Memory:
        return Memory(remembered(cfg, name, network))

    scores = build(Makers(cfg.eval.weights, cfg.data.datasets[0], job.device, memory), cfg.eval.metrics, job)
    rows = measure(scores, frames, cfg, job)
    if rows is None:
        return {}
    numbers, each = conclude(scores, rows)
    baseline: dict[str, float] = {}
    if cfg.eval.baseline:
        job.log.info("the same for source frames that nobody changed")
        copied = measure(scores, Frames(records, images, cfg, copy=True), cfg, job)
        if copied is None:
            return {}
        baseline, _ = conclude(scores, copied)
    if dist.is_main():
        publish(numbers, each, baseline, scores, rows, records, images, cfg)
        job.log.info("\n".join(f"{name:<28} {value:.5g}" for name, value in numbers.items()))
        job.log.info(f"{images.parent / 'metric' / 'report.html'}")
    dist.barrier()
    return numbers


def folder(cfg: Config, job: Run) -> Path:
    """The folder images/ of the generated frames."""
    given = cfg.eval.images or generate.folder(weights.find(cfg, job), cfg.sample)
    images = given / "images" if (given / "images").is_dir() else given
    if not images.is_dir():
        raise ValueError(
            f"{images}: no such folder; generate the frames first (python -m projects.lego.generate), or say where "
            "they are with eval.images=FOLDER"
        )
    return images


class Frames:
    """Generated frames beside the true ones and the frames before; with `copy` the frame before is the answer."""

    def __init__(self, records: Sequence[Record], images: Path, cfg: Config, *, copy: bool = False) -> None:
        self.records, self.images, self.cfg, self.copy = tuple(records), images, cfg, copy
        absent = [path for record in records if not (path := self.path(record)).is_file()]
        if absent:
            raise ValueError(
                f"{absent[0]}: no such file; {len(absent)} of {len(records)} frames are missing. Generate them (the "
                "same command goes on where it stopped)"
            )

    def __len__(self) -> int:
        return len(self.records)

    def path(self, record: Record) -> Path:
        """Where the generated frame of a record lies."""
        return generate.image_path(self.images.parent, record)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """id, text; image, target and source uint8 (H,W,3) as stored."""
        record, root = self.records[index], self.cfg.data.root
        target = pixels(data.target_path(root, record, metric=True))
        source = pixels(data.source_path(root, record))
        if self.copy:
            size = (target.shape[1], target.shape[0])
            image = torch.from_numpy(np.array(data.read_image(data.source_path(root, record)).resize(size)))
        else:
            image = pixels(self.path(record))
        text = record.fields.get(self.cfg.eval.prompt, record.fields.get("action", ""))
        return {"id": record.id, "text": text, "image": image, "target": target, "source": source}


def pixels(path: Path) -> Tensor:
    """uint8 (H,W,3)."""
    return torch.from_numpy(np.array(data.read_image(path)))


def remembered(cfg: Config, name: str, network: Path) -> Path:
    """Where a score keeps what it saw of the true frames: the name changes with the data and with the weights."""
    files = sorted(network.rglob("*")) if network.is_dir() else [network]
    state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    origin = repr((str(cfg.data.root.resolve()), cfg.sample.split, state))
    mark = hashlib.sha256(origin.encode()).hexdigest()[:12]
    return cfg.cache.folder / "metrics" / f"{cfg.data.datasets[0]}-{name}-{mark}.npz"


def build(makers: Makers, names: Sequence[str], job: Run) -> dict[str, Score]:
    """The scores that can be computed; what a missing one needs is logged.

    Raises:
        ValueError: when a score asked for by name cannot be had, or none can.
    """
    scores: dict[str, Score] = {}
    for name in names or NAMES:
        try:
            scores[name] = makers.make(name)
        except MissingWeightsError as error:
            if names:
                raise
            job.log.warning(f"{name} is left out: {error}")
    return scores


@torch.inference_mode()
def measure(scores: Mapping[str, Score], frames: Frames, cfg: Config, job: Run) -> dict[str, Any] | None:
    """Rows of all frames, merged over processes; every frame is decoded once. None when the run was asked to stop."""
    options = cfg.loader.model_copy(update={"batch_size": cfg.eval.batch_size})
    loader = Loader(frames, options, train=False)
    collector = Collector()
    for batch in job.log.progress(loader, "frames"):
        if job.stop_requested:
            return None
        pictures = {name: list(batch[name]) for name in ("image", "target", "source")}
        given = Batch(cfg.data.datasets[0], list(batch["id"]), text=list(batch["text"]), **pictures)
        rows: dict[str, Any] = {}
        for score in scores.values():
            rows |= score.measure(given)
        collector.add(given.id, **rows)
    if loader.bad:
        raise ValueError(f"frames cannot be read: {'; '.join(f'{path} ({why})' for path, why in loader.bad.items())}")
    return collector.merge()


def conclude(scores: Mapping[str, Score], rows: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """All numbers by their published keys, and what is defined for single frames."""
    numbers: dict[str, float] = {}
    each: dict[str, np.ndarray] = {}
    for score in scores.values():
        values, singles = score.conclude(rows)
        numbers |= values
        each |= singles
    return numbers, each


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean by the bootstrap over frames, the same at every call."""
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLED, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


def publish(
    numbers: Mapping[str, float],
    each: Mapping[str, np.ndarray],
    baseline: Mapping[str, float],
    scores: Mapping[str, Score],
    rows: Mapping[str, Any],
    records: Sequence[Record],
    images: Path,
    cfg: Config,
) -> None:
    """Write the files of `metric/` beside images/, and keep what the scores saw of the true frames."""
    out = images.parent / "metric"
    ids: list[str] = list(rows["id"])
    known = {record.id: record for record in records}
    path = out / "metric.json"
    before = simplejson.loads(path.read_text()) if path.is_file() else {}
    write_atomic(path, simplejson.dumps({**before, **numbers}, indent=4, ignore_nan=True) + "\n")
    results = {
        name: {
            "value": value,
            "interval_95": interval(each[name]) if name in each and len(ids) > 1 else None,
            "source_frame": baseline.get(name),
        }
        for name, value in numbers.items()
    }
    summary = {"frames": len(ids), "images": str(images), "scores": results}
    write_atomic(out / "results.json", simplejson.dumps(summary, indent=2, ignore_nan=True) + "\n")
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["clip", "action", "frame", *each])
    for place, name in enumerate(ids):
        record = known[name]
        writer.writerow([record.clip, record.action, record.target, *(f"{v[place]:.6g}" for v in each.values())])
    write_atomic(out / "scores.csv", lines.getvalue())
    for name, score in scores.items():
        if isinstance(score, Embeddings):
            keep(score, rows)
        elif isinstance(score, Captioned):
            texts = dict(zip(ids, rows[f"{name}:caption"], strict=True))
            captions(texts, known, out / ("blip-l.json" if "large" in name else "blip.json"))
    report.write(out / "report.html", numbers, results, each, ids, known, images, cfg)


def keep(score: Embeddings, rows: Mapping[str, Any]) -> None:
    """What a score saw of the true frames, for the next evaluation."""
    if (path := score.memory.path) is not None:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, id=np.array(rows["id"]), embedding=np.asarray(rows[f"{score.key}:truth"]))


def captions(texts: Mapping[str, str], known: Mapping[str, Record], path: Path) -> None:
    """{clip: {action: caption}}, as the original writes it."""
    tree: dict[str, dict[str, str]] = {}
    for name in known:
        tree.setdefault(known[name].clip, {})[known[name].action] = texts[name]
    write_atomic(path, simplejson.dumps(tree, indent=4) + "\n")


if __name__ == "__main__":
    main()
