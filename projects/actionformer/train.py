"""ActionFormer (ECCV 2022): every moment of a video is classified, and says how far its action reaches to both sides.

python -m projects.actionformer.train projects/actionformer/configs/thumos_i3d.yaml
torchrun --standalone --nproc-per-node 4 -m projects.actionformer.train projects/actionformer/configs/thumos_i3d.yaml
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from core import config, dist, run, summary
from core.checkpoint import Checkpoints
from core.data import Loader
from core.log import Throughput
from core.run import Run
from core.step import TrainStep
from projects.actionformer import convert, data, eval, official_run, validation, weights
from projects.actionformer.config import Config
from projects.actionformer.data import Benchmark
from projects.actionformer.loss_log import LossLogger
from projects.actionformer.losses import Criterion
from projects.actionformer.model import Detector, example
from projects.actionformer.schedule import OfficialSchedule


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, evaluate the moving average on the way, and publish the best weights; returns their figures."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run) as job:
        return train(cfg, job)


def train(cfg: Config, job: Run) -> dict[str, float]:
    """The method: classify the points of a pyramid, regress those near the middle of an action, average the weights."""
    benchmark = data.load(cfg.data)
    job.log.info(benchmark.describe())
    for warning in validation.validate_config(cfg):
        job.log.warning(warning)
    net = network(cfg, benchmark).to(job.device)
    if cfg.init:
        job.log.info(str(convert.load(net, cfg.init)))
    job.log.info(summary.describe(net, example(net, job.device)))

    loader = Loader(
        benchmark.dataset("train", train=True), cfg.loader, train=True, device=job.device, collate=data.collate
    )
    val_loader = eval.loader(benchmark, cfg, job.device)
    step = train_step(net, cfg, len(loader))
    criterion = Criterion(cfg.loss, cfg.model.name, cfg.data.classes, job.device)
    saved = Checkpoints(job.out, best="val/mAP", keep=cfg.run.keep, about=weights.about(cfg, benchmark.classes))
    state: dict[str, Any] = {"model": net, "step": step, "loader": loader, "criterion": criterion}
    if not saved.restore(state) and cfg.resume:
        job.log.info(official_run.resume(cfg.resume, step, loader))
    job.log.rewind(step.count)
    losses, speed, metrics = LossLogger(cfg.run.log_every), Throughput(), {}

    epochs = cfg.optim.stop_epoch or cfg.optim.epochs
    for epoch in loader.epochs(until=epochs):
        net.train()
        speed.reset()
        for batch in loader:
            with step.forward() as forward:
                outputs = forward(batch["features"], batch["mask"], batch["lengths"])
            terms = criterion(outputs, batch)
            norm = step.backward(terms["total"])
            losses.update(terms)
            speed.add(len(batch["id"]), loader.wait_s)
            if norm is None:
                continue  # more micro-batches belong to this step
            if step.count % cfg.run.log_every == 0:
                job.log.scalars(step.count, {**losses.tensorboard(), "lr": step.lr, "grad_norm": norm, **speed.read()})
            stopping = job.stopping(step.count)
            if stopping or (cfg.run.save_every and step.count % cfg.run.save_every == 0):
                saved.save(step.count, state)
            if stopping:
                return {}

        loader.end_epoch()
        saved.save(step.count, state)  # whatever happens in the evaluation, the epoch is not lost
        if (epoch + 1) % cfg.run.eval_every == 0 or epoch + 1 == epochs:
            found = eval.evaluate(step.eval_model, val_loader, cfg, stopping=lambda: job.stop_requested)
            if found is None:
                return {}
            metrics = {f"val/{name}": value for name, value in eval.measure(found, benchmark, cfg).items()}
            job.log.scalars(step.count, metrics)
            saved.save(step.count, state, metrics)

    job.log.info(f"trained for {epochs} epochs; read {loader.coverage()}")
    return eval.test(cfg, job, benchmark)


def network(cfg: Config, benchmark: Benchmark) -> Detector:
    """The network; classes that no video has start from a prior of a millionth, as officially on EPIC-KITCHENS."""
    empty = cfg.model.empty_classes or benchmark.empty_classes
    return convert.build(cfg.model_copy(update={"model": cfg.model.model_copy(update={"empty_classes": empty})}))


def train_step(net: Detector, cfg: Config, batches: int) -> TrainStep:
    """Optimizer, averages and learning rates; `batches` is the length of an epoch on this process."""
    scaled = cfg.optim.lr * (dist.world().size * cfg.optim.accumulate if cfg.optim.scale_lr else 1)
    settings = cfg.optim.model_copy(update={"lr": scaled})
    official = settings.recipe == "official"
    return TrainStep(
        net,
        settings,
        batches_per_epoch=batches,
        precision=cfg.precision,
        compile=cfg.compile,
        rules=[(r"rel_pe$", {"weight_decay": 0.0})]
        if any("rel_pe" in name for name, _ in net.named_parameters())
        else (),
        factor=OfficialSchedule(settings, math.ceil(batches / settings.accumulate)) if official else None,
    )


if __name__ == "__main__":
    main()
