"""X3D on UCF50: a Kinetics backbone, a new linear layer, cross-entropy on position-averaged logits.

python -m projects.ucf50_x3d.train projects/ucf50_x3d/configs/ucf50_x3d_s.yaml data.root=data/ucf50/UCF50
torchrun --standalone --nproc-per-node 4 -m projects.ucf50_x3d.train projects/ucf50_x3d/configs/ucf50_x3d_s.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core import config, run, summary
from core.checkpoint import Checkpoints
from core.data import Loader
from core.log import Meter, Throughput
from core.run import Run
from core.step import TrainStep
from projects.ucf50_x3d import data, features, model, report, weights
from projects.ucf50_x3d.config import Config
from projects.ucf50_x3d.eval import evaluate, measure
from projects.ucf50_x3d.losses import criterion


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, evaluate after every epoch, keep the best; returns the last epoch's metrics."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run) as job:
        return train(cfg, job)


def train(cfg: Config, job: Run) -> dict[str, float]:
    """The method: freeze what was learned on Kinetics, learn the last layer (or all) on the new classes."""
    benchmark = data.load(cfg.data)
    job.log.info(benchmark.describe())
    net = weights.build(cfg.model, len(benchmark.classes)).to(job.device)
    if cfg.model.init:
        job.log.info(str(weights.initialize(net, cfg.model)))
    model.freeze(net, cfg.model.trainable)
    job.log.info(summary.describe(net, weights.example(cfg, job.device)))

    if cfg.features.cache == "none":
        loader = Loader(
            benchmark.dataset("train", cfg.clip, train=True), cfg.loader, train=True, device=job.device,
            transform=data.transform(cfg.clip, len(benchmark.classes), train=True),
        )  # fmt: skip
        held_out = benchmark.dataset("val", cfg.clip)
        val_loader = Loader(held_out, cfg.loader, train=False, device=job.device, transform=data.transform(cfg.clip))
        learner, source = net, "video"
    else:  # the backbone never changes: run it once, then train the head on what it said
        cached = features.prepare(net, benchmark, cfg, job)
        if cached is None:
            return {}
        loader = Loader(cached["train"], cfg.loader, train=True, device=job.device)
        val_loader = Loader(cached["val"], cfg.loader, train=False, device=job.device)
        learner, source = features.CachedHead(net.blocks[-1]), "features"

    step = TrainStep(learner, cfg.optim, batches_per_epoch=len(loader), precision=cfg.precision, compile=cfg.compile)
    saved = Checkpoints(job.out, best="val/accuracy", keep=cfg.run.keep, metadata=weights.metadata(cfg, benchmark))
    epoch_loss, speed = Meter(), Throughput()
    parts = {"model": net, "step": step, "loader": loader, "epoch_loss": epoch_loss}
    job.log.rewind(saved.restore(parts))

    metrics: dict[str, float] = {}
    for epoch in loader.epochs(until=cfg.optim.epochs):
        model.train(net, cfg.model.frozen_norm)
        for batch in loader:
            with step.forward() as forward:
                losses = criterion(forward(batch[source]), batch, cfg.loss)
            step.backward(losses["total"])
            epoch_loss.add(losses["total"])
            speed.add(len(batch["id"]), loader.wait_s)
            seen = epoch * len(loader) + loader.batch
            job.log.scalars(step.count, {"Loss/Train_Batch": losses["total"], "lr": step.lr}, tensorboard_step=seen)
            if job.stopping(seen) or (cfg.run.save_every and seen % cfg.run.save_every == 0):
                saved.save(step.count, parts)
            if job.stopped:
                return {}

        saved.save(step.count, parts)
        found = evaluate(step.eval_model, val_loader, stopping=lambda: job.stop_requested)
        if found is None:  # asked to stop while evaluating: this epoch is evaluated when the run goes on
            return {}
        metrics = {f"val/{name}": value for name, value in measure(found).items()}
        ...
    return metrics


if __name__ == "__main__":
    main()
