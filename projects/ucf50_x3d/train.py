"""X3D on UCF50: a Kinetics backbone, a new linear layer, cross-entropy on position-averaged logits.

python -m projects.ucf50_x3d.train projects/ucf50_x3d/configs/ucf50_x3d_s.yaml data.root=data/ucf50/UCF50
torchrun --standalone --nproc-per-node 4 -m projects.ucf50_x3d.train projects/ucf50_x3d/configs/ucf50_x3d_s.yaml
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from core import config, dist, run, summary
from core.checkpoint import Checkpoints
from core.data import Loader
from core.log import Meter, Throughput
from core.run import Run
from core.step import TrainStep
from projects.ucf50_x3d import convert, data, features, model, weights
from projects.ucf50_x3d.config import Config
from projects.ucf50_x3d.eval import evaluate, measure, test
from projects.ucf50_x3d.losses import criterion


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, validate after every epoch, test the best weights; returns the figures of the test."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run) as job:
        return train(cfg, job)


def train(cfg: Config, job: Run) -> dict[str, float]:
    """The method: keep what was learned on Kinetics, learn the last layer (or all of it) on the new classes."""
    benchmark = data.load(cfg.data)
    job.log.info(benchmark.describe())
    net = model.build(cfg.model, len(benchmark.classes))
    if cfg.model.init:
        job.log.info(str(convert.load(net, cfg.model.init)))
    model.freeze(net.to(job.device), cfg.model.trainable)
    job.log.info(summary.describe(net, data.example(cfg.clip).to(job.device)))

    cached = cfg.features.cache != "none"  # the frozen backbone runs once; the head trains on what it said
    if cached and not features.compute(net, benchmark, cfg, job):
        return {}
    source, learner = ("features", features.CachedHead(net)) if cached else ("video", net)
    loader, val_loader = (clips(part, net, benchmark, cfg, job) for part in ("train", "val"))
    if loader is None:
        raise ValueError(f"there is nothing to train on: {benchmark.describe()}; check the data section")

    step = TrainStep(
        learner,
        cfg.optim,
        batches_per_epoch=len(loader),
        precision=cfg.precision,
        compile=cfg.compile,
        channels_last=job.device.type == "cuda",
    )
    saved = Checkpoints(job.out, best="val/accuracy", keep=cfg.run.keep, about=weights.about(cfg, benchmark.classes))
    epoch_loss, speed = Meter(), Throughput()
    state = {"model": net, "step": step, "loader": loader, "epoch_loss": epoch_loss}
    saved.restore(state)
    seen = loader.state_dict()["epoch"] * len(loader) + loader.batch  # batches of all epochs, as the original counts
    job.log.rewind(seen)

    for epoch in loader.epochs(until=cfg.optim.epochs):
        model.train(net, cfg.model.frozen_norm)
        speed.reset()
        for batch in loader:
            with step.forward() as forward:
                losses = criterion(forward(batch[source]), batch, cfg.loss)
            stepped = step.backward(losses["total"]) is not None
            epoch_loss.add(losses["total"])
            speed.add(len(batch["id"]), loader.wait_s)

            seen += 1
            shown = loader.batch % cfg.run.log_every == 0
            row: dict[str, float | Tensor] = {"Loss/Train_Batch": losses["total"], "lr": step.lr}
            row |= speed.read() if shown else {}
            job.log.scalars(seen, row, console=shown)
            if job.stopping(seen):
                saved.save(step.count, state)
                return {}
            if stepped and cfg.run.save_every and step.count % cfg.run.save_every == 0:
                saved.save(step.count, state)

        saved.save(step.count, state)  # whatever happens in the evaluation, the epoch is not lost
        metrics = None
        if val_loader and ((epoch + 1) % cfg.run.eval_every == 0 or epoch + 1 == cfg.optim.epochs):
            dist.sync_buffers(step.eval_model)
            found = evaluate(step.eval_model, val_loader, precision=cfg.precision, stopping=lambda: job.stop_requested)
            if found is None:
                return {}
            metrics = {f"val/{name}": value for name, value in measure(found).items()}
        figures = dist.mean({"Loss/Train_Epoch": epoch_loss.mean})
        if metrics:
            figures |= {"Loss/Valid_Epoch": metrics["val/loss"], "Accuracy/Valid_Epoch": metrics["val/accuracy"]}
        job.log.scalars(seen, figures, tensorboard_step=epoch)
        epoch_loss.reset()
        loader.end_epoch()
        saved.save(step.count, state, metrics)

    job.log.info(f"trained for {cfg.optim.epochs} epochs; read {loader.coverage()}")
    if not len(benchmark.dataset(cfg.eval.split, cfg.clip)):
        job.log.warning(f"not tested: the dataset has no {cfg.eval.split} clips")
        return {}
    return test(cfg, job, benchmark)


def clips(
    part: str, net: model.X3D | model.SlowFast, benchmark: data.Benchmark, cfg: Config, job: Run
) -> Loader | None:
    """The clips of a part of the dataset, or their cached features; None when it has none."""
    train = part == "train"
    if cfg.features.cache != "none":
        found = features.dataset(net, benchmark, part, cfg)
        return Loader(found, cfg.loader, train=train, device=job.device) if len(found) else None
    dataset = benchmark.dataset(part, cfg.clip, train=train)
    change = data.transform(cfg, benchmark, train=train)
    return Loader(dataset, cfg.loader, train=train, device=job.device, transform=change) if len(dataset) else None


if __name__ == "__main__":
    main()
