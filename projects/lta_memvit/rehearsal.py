"""One batch of everything before days are spent: training, validation and forecasts of the test part, on real data.

`train.fast_dev_run=true` makes any training such a rehearsal. It takes place in `<run.out>/fast_dev_run`, so that a run
that is there already is not touched, and leaves a report but no weights.
"""

from __future__ import annotations

import dataclasses
import math
import shutil

from core import dist
from core.run import Run
from projects.lta_memvit.config import Config
from projects.lta_memvit.data import Benchmark

FOLDER = "fast_dev_run"


def settings(cfg: Config) -> Config:
    """The same run for one epoch, in a folder of its own; features are computed there too."""
    out = cfg.run.out / FOLDER
    changes = {
        "run": {"out": out, "eval_every": 1, "log_every": 1},
        "optim": {"epochs": 1},
        "model": {"precise_bn": min(cfg.model.precise_bn, 1)},
        "train": {"sanity_batches": min(cfg.train.sanity_batches, 1)},
        "features": {"folder": out / "features"} if cfg.features.source == "cache" else {},
    }
    return cfg.model_copy(
        update={name: getattr(cfg, name).model_copy(update=update) for name, update in changes.items()}
    )


def shortened(benchmark: Benchmark, cfg: Config, processes: int) -> Benchmark:
    """The first samples of every part, one batch for each process: one of every clip, and more where clips are few."""
    least = 1
    if cfg.task == "forecasting":
        least = cfg.data.inputs + cfg.data.future + (cfg.data.windows == "reference")
    parts = {}
    for part in benchmark.parts:
        samples = processes * (cfg.loader.batch_size if part == "train" else cfg.eval.batch_size)
        clips = [actions for name, actions in benchmark.clips(part).items() if len(actions) >= least]
        if cfg.features.source == "ego4d":
            clips = [actions for actions in clips if (cfg.features.folder / f"{actions[0].video_uid}.pt").exists()]
        else:
            clips = [actions for actions in clips if actions[0].clip_uid in benchmark.files]
        chosen = clips[:samples]
        each = least - 1 + math.ceil(samples / max(1, len(chosen)))
        parts[part] = [action for actions in chosen for action in actions[:each]]
    return dataclasses.replace(benchmark, parts=parts)


def clear(job: Run) -> None:
    """Leave no weights, nor features that belong to shortened clips."""
    if job.world.rank == 0:
        for name in ("checkpoints", "features"):
            shutil.rmtree(job.out / name, ignore_errors=True)
    dist.barrier()
