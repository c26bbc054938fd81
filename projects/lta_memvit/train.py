"""Recognize actions, and forecast the next twenty: SlowFast, MViT or MeMViT on Ego4D, as its baseline is trained.

python -m projects.lta_memvit.train projects/lta_memvit/configs/ego4d_memvit_concat_forecasting.yaml
torchrun --standalone --nproc-per-node 4 -m projects.lta_memvit.train CONFIG [KEY=VALUE ...]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from core import config, dist, run, summary
from core.checkpoint import Checkpoints
from core.log import Meter, Throughput
from core.run import Run
from core.step import TrainStep
from projects.lta_memvit import convert, data, eval, features, histograms, model, precise, rehearsal, schedule, weights
from projects.lta_memvit.config import Config
from projects.lta_memvit.data import Benchmark
from projects.lta_memvit.losses import criterion, errors
from projects.lta_memvit.model import Network, Outputs


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, validate after every epoch; returns the last figures."""
    cfg = config.parse(Config, argv)
    if cfg.train.fast_dev_run:
        return rehearse(rehearsal.settings(cfg))
    with run.start(cfg, cfg.run) as job:
        return train(cfg, job, data.load(cfg.data))


def rehearse(cfg: Config) -> dict[str, float]:
    """Train on one batch, validate and test on one, write the report, and keep no weights."""
    with run.start(cfg, cfg.run) as job:
        rehearsal.clear(job)
        benchmark = rehearsal.shortened(data.load(cfg.data), cfg, job.world.size)
        metrics = train(cfg, job, benchmark)
        for part in ("test", "val"):  # the report of validation, which has figures, is the one that stays
            if part in benchmark.parts and not job.stopping():
                part_cfg = cfg.model_copy(update={"eval": cfg.eval.model_copy(update={"split": part}), "ckpt": ""})
                eval.test(part_cfg, job, benchmark)
        rehearsal.clear(job)
        job.log.info("one batch of everything went through; no weights are kept")
        return metrics


def train(cfg: Config, job: Run, benchmark: Benchmark) -> dict[str, float]:
    """The method: a backbone learns to recognize segments; frozen or not, it then learns to tell what follows."""
    job.log.info(benchmark.describe())
    net = build(cfg, benchmark, job)
    cached = cfg.features.source == "cache"
    if cached and not features.compute(net, benchmark, ("train", "val"), cfg, job):
        return {}
    loader = eval.loader("train", net, benchmark, cfg, job, train=True)
    val_loader = eval.loader("val", net, benchmark, cfg, job) if benchmark.labeled("val") else None

    steps_per_epoch = math.ceil(len(loader) / cfg.optim.accumulate)
    step = TrainStep(
        net,
        cfg.optim,
        batches_per_epoch=len(loader),
        precision=cfg.precision,
        compile=cfg.compile,
        channels_last=job.device.type == "cuda",
        rules=schedule.decay(net, cfg.optim),
        factor=lambda count: schedule.lr_factor(count, cfg.optim, cfg.optim.epochs * steps_per_epoch, steps_per_epoch),
    )
    histograms.watch(step, cfg.train.histograms, job.log)
    best = "val/ed_verb" if cfg.task == "forecasting" else "val/noun_error"
    about = weights.about(cfg, benchmark.taxonomy)
    saved = Checkpoints(job.out, best=best, mode="min", keep=cfg.run.keep, about=about)
    epoch_loss, speed = Meter(), Throughput()
    state: dict[str, Any] = {"model": net, "step": step, "loader": loader, "epoch_loss": epoch_loss}
    if net.memory is not None:
        state["memory"] = net.memory  # so that a run goes on in the middle of its clips
    saved.restore(state)
    seen = loader.state_dict()["epoch"] * len(loader) + loader.batch
    job.log.rewind(seen)
    if seen == 0 and val_loader is not None and cfg.train.sanity_batches:
        look_ahead(step.eval_model, benchmark, cfg, job)

    metrics: dict[str, float] = {}
    for epoch in loader.epochs(until=cfg.optim.epochs):
        model.train(net, cfg.model)
        speed.reset()
        if loader.batch == 0:
            net.forget()
        for batch in loader:
            with step.forward() as forward:
                outputs = answer(forward, batch, cfg)
                losses = criterion(outputs, batch, cfg.loss)
            stepped = step.backward(losses["total"]) is not None
            epoch_loss.add(losses["total"])
            speed.add(len(batch["id"]), loader.wait_s)

            seen += 1
            shown = loader.batch % cfg.run.log_every == 0
            row: dict[str, float | Tensor] = {"train/loss": losses["total"], "lr": step.lr}
            if shown:
                row |= speed.read()
                job.log.scalars(seen, {f"train/{name}": v for name, v in errors(outputs, batch).items()}, console=False)
            job.log.scalars(seen, row, console=shown)
            if job.stopping(seen):
                saved.save(step.count, state)
                return {}
            if stepped and cfg.run.save_every and step.count % cfg.run.save_every == 0:
                saved.save(step.count, state)

        if cfg.model.precise_bn:
            precise.update(net, fresh_batches(net, benchmark, cfg, job, epoch))
        saved.save(step.count, state)  # whatever happens in the evaluation, the epoch is not lost
        figures = dist.mean({"train/epoch_loss": epoch_loss.mean})
        measured = None
        if val_loader is not None and ((epoch + 1) % cfg.run.eval_every == 0 or epoch + 1 == cfg.optim.epochs):
            dist.sync_buffers(step.eval_model)
            tested = step.eval_model
            assert isinstance(tested, Network)
            found = eval.evaluate(tested, val_loader, cfg, stopping=lambda: job.stop_requested)
            if found is None:
                return {}
            measured = metrics = {f"val/{name}": value for name, value in eval.measure(found, cfg).items()}
            job.log.info(eval.headline(metrics, "val", cfg))
        job.log.scalars(seen, figures | (measured or {}), tensorboard_step=epoch, console=False)
        epoch_loss.reset()
        loader.end_epoch()
        saved.save(step.count, state, measured)

    job.log.info(f"trained for {cfg.optim.epochs} epochs; read {loader.coverage()}")
    return metrics


def look_ahead(net: nn.Module, benchmark: Benchmark, cfg: Config, job: Run) -> None:
    """Validate on a few batches, so that what is wrong with validation ends the run now and not after an epoch."""
    assert isinstance(net, Network)
    few = cfg.loader.model_copy(update={"workers": min(cfg.loader.workers, 2)})
    loader = eval.loader("val", net, benchmark, cfg.model_copy(update={"loader": few}), job)
    found = eval.evaluate(net, itertools.islice(loader, cfg.train.sanity_batches), cfg)
    loader.close()
    assert found is not None
    eval.measure(found, cfg)
    job.log.info(f"validation works: {len(found['id'])} samples")


def answer(forward: nn.Module, batch: Mapping[str, Any], cfg: Config) -> Outputs:
    """What the network says to a batch of clips, each at its place in its stream, or to their features."""
    outputs: Outputs
    if "features" in batch:
        outputs = forward(features=batch["features"])
    else:
        outputs = forward(batch["video"], streams=model.streams(batch, cfg.memory, train=True))
    return outputs


def build(cfg: Config, benchmark: Benchmark, job: Run) -> Network:
    """The network on its device, with the weights it starts from; what is frozen is frozen.

    Raises: ValueError for a network with nothing to learn, or a memory that several processes cannot train.
    """
    if cfg.model.aggregator == "repeat":
        raise ValueError("model.aggregator=repeat has nothing to learn; train its recognizer with task=recognition")
    original = cfg.memory.mode == "reference" and cfg.model.backbone.startswith("memvit") and not cfg.model.freeze
    if original and job.world.size > 1:
        raise ValueError(
            "memory.mode=reference leaves weights without gradient, which several processes cannot train, nor could "
            "the original; use memory.mode=clip, model.freeze=true or one process"
        )
    net = model.build(
        cfg.model,
        cfg.memory,
        task=cfg.task,
        classes=benchmark.classes,
        inputs=cfg.data.inputs,
        future=cfg.data.future,
        frames=cfg.clip.frames,
        crop=cfg.clip.crop,
    )
    if cfg.model.init:
        job.log.info(str(convert.load(net, cfg.model.init, head=cfg.model.init_head)))
    if cfg.model.freeze:
        model.freeze(net)
    net.to(job.device)
    if cfg.model.backbone != "none":
        job.log.info(summary.describe(net, data.example(cfg).to(job.device)))
    return net


def fresh_batches(net: Network, benchmark: Benchmark, cfg: Config, job: Run, epoch: int) -> Iterator[Tensor]:
    """Training clips in another order, so that the place of the training itself in its epoch does not change."""
    seed = cfg.loader.model_copy(update={"seed": cfg.loader.seed + 1, "workers": min(cfg.loader.workers, 2)})
    loader = eval.loader("train", net, benchmark, cfg.model_copy(update={"loader": seed}), job, train=True)
    loader.load_state_dict({"epoch": epoch, "batch": 0})
    for batch in itertools.islice(loader, cfg.model.precise_bn):
        yield batch["video"]
    loader.close()


if __name__ == "__main__":
    main()
