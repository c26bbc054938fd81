"""S-GEAR: observed frames, mixed with the prototypes they resemble, tell which action comes next.

The prediction of the decoder is taught by the next action, the past ones and the next features; its likeness to all
visual prototypes is taught by the likeness of the action's name to all names (semantic loss).

python -m projects.sgear.train projects/sgear/configs/ek100_vit.yaml data.root=data/sgear
torchrun --standalone --nproc-per-node 4 -m projects.sgear.train @projects/sgear/experiments/ek100_SGEAR_vit.txt
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from core import config, dist, run, summary
from core.checkpoint import Checkpoints
from core.data import Loader
from core.log import Meter, Throughput
from core.run import Run
from core.step import TrainStep
from projects.sgear import data, eval, mixup, optim, weights
from projects.sgear.config import Config
from projects.sgear.data import Benchmark
from projects.sgear.losses import Criterion, accuracy, freeze_idle
from projects.sgear.model import Sgear


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, validate after every epoch, test the best weights; with test_only test at once. Returns the figures."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=cfg.test_only) as job:
        benchmark = data.load(cfg.data)
        job.log.info(benchmark.describe())
        return eval.test(cfg, job, benchmark) if cfg.test_only else train(cfg, job, benchmark)


def train(cfg: Config, job: Run, benchmark: Benchmark) -> dict[str, float]:
    """The method, from start weights and prototypes to the figures of the best epoch."""
    net = weights.build(cfg, benchmark)
    for line in weights.start(net, cfg.model):
        job.log.info(line)
    net.to(job.device)
    dataset: Any = benchmark.dataset("train", cfg, train=True)
    change = data.transform(cfg, train=True)
    loader = Loader(dataset, cfg.loader, train=True, device=job.device, transform=change)
    val_loader = eval.samples(cfg, job, benchmark, "val")
    criterion = make_criterion(net, benchmark, cfg)
    net.teach_past = criterion.looks_back
    training = optim.scaled(cfg.optim, cfg.loader.batch_size)
    rules = optim.rules(net, training)
    source = cfg.model.input
    example = data.example(cfg).to(job.device)
    job.log.info(freeze_idle(net, criterion, example) + summary.describe(net, example))

    plateau = optim.Plateau(training.plateau, training.gamma)
    step = TrainStep(
        net,
        training,
        batches_per_epoch=len(loader),
        precision=cfg.precision,
        compile=cfg.compile,
        rules=rules,
        factor=optim.per_step(training, len(loader), plateau),
    )
    saved = Checkpoints(
        job.out, best=f"val/{benchmark.primary}", keep=cfg.run.keep, about=weights.about(cfg, benchmark)
    )
    epoch_loss, speed = Meter(), Throughput()
    state: dict[str, Any] = {"model": net, "step": step, "loader": loader, "plateau": plateau, "epoch_loss": epoch_loss}
    saved.restore(state)
    seen = loader.state_dict()["epoch"] * len(loader) + loader.batch
    job.log.rewind(seen)

    for epoch in loader.epochs(until=cfg.optim.epochs):
        net.train()
        speed.reset()
        for batch in loader:
            if cfg.loss.mixup:
                batch = mixup.mix_batch(batch, source, cfg.loss.mixup)
            with step.forward() as forward:
                outputs = forward(batch[source])
                losses = criterion(outputs, batch)
            # As released, the gradients of accumulated batches add up; core would take their mean.
            summed = step.window if cfg.optim.accumulation == "sum" else 1
            stepped = step.backward(losses["total"] * summed) is not None
            epoch_loss.add(losses["total"])
            speed.add(len(batch["id"]), loader.wait_s)

            seen += 1
            shown = loader.batch % cfg.run.log_every == 0
            row: dict[str, float | Tensor] = {f"train/loss_{name}": value for name, value in losses.items()}
            row["train/lr"] = step.lr
            if shown:
                for label, logits in outputs.logits.items():
                    own = batch["label" if label == "action" else label]
                    row |= {f"train/{label}_top{k}": accuracy(logits.detach(), own, k) for k in (1, 5)}
                row |= speed.read()
            job.log.scalars(seen, row, console=shown)
            if job.stopping(seen):
                saved.save(step.count, state)
                return {}
            if stepped and cfg.run.save_every and step.count % cfg.run.save_every == 0:
                saved.save(step.count, state)

        saved.save(step.count, state)  # whatever happens in the evaluation, the epoch is not lost
        metrics = None
        if (epoch + 1) % cfg.run.eval_every == 0 or epoch + 1 == cfg.optim.epochs:
            dist.sync_buffers(step.eval_model)
            found = eval.evaluate(
                step.eval_model, val_loader, precision=cfg.precision, stopping=lambda: job.stop_requested
            )
            if found is None:
                return {}
            metrics = {f"val/{name}": value for name, value in eval.measure(found, benchmark).items()}
            plateau.see(metrics[f"val/{benchmark.primary}"])
        figures = dist.mean({"train/epoch_loss": epoch_loss.mean}) | (metrics or {})
        job.log.scalars(seen, figures, tensorboard_step=epoch)
        epoch_loss.reset()
        loader.end_epoch()
        saved.save(step.count, state, metrics)

    job.log.info(f"trained for {cfg.optim.epochs} epochs; read {loader.coverage()}")
    return eval.test(cfg, job, benchmark)


def make_criterion(net: Sgear, benchmark: Benchmark, cfg: Config) -> Criterion:
    """The losses with what they know of the dataset: language similarities, verbs and nouns of actions, frequencies."""
    parents = {"verb": benchmark.verb_of, "noun": benchmark.noun_of}
    counts = {}
    if cfg.loss.balance:
        counts["action"] = benchmark.counts("train").float()
        for label, ids in parents.items():
            if len(ids):
                counts[label] = counts["action"].new_zeros(int(ids.max()) + 1).index_add(0, ids, counts["action"])
    table = weights.similarities(cfg.model, len(benchmark.actions)) if cfg.model.kind == "sgear" else None
    return Criterion(cfg.loss, net, similarities=table, parents=parents, counts=counts)


if __name__ == "__main__":
    main()
