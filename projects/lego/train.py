"""LEGO's diffusion stage: Stable Diffusion learns to draw the frame of an action from the frame before it.

The source frame's latents are four more input channels of the UNet; the context is CLIP's text, the VLLM's image
features and its text features. Conditions are dropped at random, for guidance by both.

python -m projects.lego.train projects/lego/configs/ego4d_ldm.yaml data.root=data/lego
torchrun --standalone --nproc-per-node 8 -m projects.lego.train projects/lego/configs/ego4d_ldm.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from core import config, dist, run
from core.checkpoint import Checkpoints
from core.checkpoint.checkpoints import Part
from core.data import Loader
from core.data.order import randomness
from core.log import Meter, Throughput
from core.optim import Rule
from core.run import Run
from core.step import TrainStep, autocast
from projects.lego import model, weights
from projects.lego.batches import Batches
from projects.lego.config import Config
from projects.lego.generate import grid
from projects.lego.losses import criterion
from projects.lego.model import Lego, Schedule

BLOCKS = (BasicTransformerBlock, ResnetBlock2D)  # what FSDP gathers one by one


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train and validate; returns the figures of the last validation."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run) as job:
        return train(cfg, job)


def train(cfg: Config, job: Run) -> dict[str, float]:
    """The method: the mean squared error of the noise in the target frame's latents."""
    seed_alike(cfg)
    lego = model.build(cfg.model)
    weights.start(lego, cfg, job)
    freeze(lego.to(job.device), train_conditioner=cfg.model.train_conditioner)
    if cfg.model.checkpointing:
        lego.unet.enable_gradient_checkpointing()
    schedule = weights.schedule(cfg).to(job.device)
    data = Batches(cfg, job, lego.conditioner)
    if not data.prepare():  # caches what the frozen networks say
        return {}
    loader, val_loader = data.loader("train"), data.loader("val") if data.records["val"] else None
    job.log.info(data.describe())

    step = TrainStep(
        lego,
        cfg.optim,
        batches_per_epoch=len(loader),
        precision=cfg.precision,
        strategy=cfg.strategy,
        compile=cfg.compile,
        channels_last=cfg.strategy == "ddp",  # FSDP shards parameters that are laid out plainly only
        blocks=BLOCKS if cfg.strategy == "fsdp" else (),
        rules=decay_everywhere(cfg.optim.weight_decay),
    )
    saved = Checkpoints(job.out, best="val/loss_simple_ema", mode="min", keep=cfg.run.keep, about=weights.about(cfg))
    epoch_loss, speed = Meter(), Throughput()
    state: dict[str, Part] = {"model": lego, "step": step, "loader": loader, "epoch_loss": epoch_loss}
    saved.restore(state)
    data.confirm()
    job.log.rewind(step.count)
    metrics: dict[str, float] = {}

    for epoch in loader.epochs(until=cfg.optim.epochs):
        lego.train()
        speed.reset()
        for batch in loader:
            inputs = data.inputs(batch)
            drawn = draws(batch["id"], inputs.moments, cfg, schedule, epoch=epoch, number=loader.batch)
            noisy = schedule.add_noise(drawn.latents, drawn.noise, drawn.timesteps)
            source = inputs.source * drawn.keep_source[:, None, None, None]
            with step.forward() as net:
                predicted = net(noisy, drawn.timesteps, source, inputs.condition, drawn.drop_text, data.null)
            losses = criterion(predicted, drawn.noise, drawn.timesteps, schedule)
            norm = step.backward(losses["total"])
            epoch_loss.add(losses["total"])
            speed.add(len(batch["id"]), loader.wait_s)

            if norm is not None and step.count % cfg.run.log_every == 0:
                row: dict[str, float | Tensor] = {f"train/loss_{name}": losses[name] for name in ("simple", "vlb")}
                job.log.scalars(step.count, row | {"lr": step.lr, "grad_norm": norm} | speed.read())
            stepped = norm is not None
            if stepped and cfg.show.every and step.count % cfg.show.every == 0:
                show(step, data, schedule, cfg, job)
            stopping = job.stopping(loader.batch)
            if stopping or (stepped and cfg.run.save_every and step.count % cfg.run.save_every == 0):
                saved.save(step.count, state)
            if stopping:
                return {}

        saved.save(step.count, state)  # whatever happens in the validation, the epoch is not lost
        figures = dist.mean({"train/loss_epoch": epoch_loss.mean})
        if val_loader and ((epoch + 1) % cfg.run.eval_every == 0 or epoch + 1 == cfg.optim.epochs):
            metrics = validate(step, val_loader, data, schedule, cfg, job)
            if not metrics:
                return {}
        job.log.scalars(step.count, figures | metrics, tensorboard_step=epoch)
        epoch_loss.reset()
        loader.end_epoch()
        saved.save(step.count, state, metrics or None)

    job.log.info(f"trained for {cfg.optim.epochs} epochs; read {loader.coverage()}; next: generate, then make eval")
    return metrics


def freeze(lego: Lego, *, train_conditioner: bool) -> None:
    """Let the UNet learn. The reference's optimizer never got the conditioning; its drop-out is active all the same."""
    lego.requires_grad_(True)
    lego.conditioner.requires_grad_(train_conditioner)


def decay_everywhere(weight_decay: float) -> list[Rule]:
    """The reference decays biases and norms too."""
    return [("", {"weight_decay": weight_decay})]


def seed_alike(cfg: Config) -> None:
    """In reference mode all processes start from one seed, so that their drop-out is alike too."""
    if cfg.diffusion.draws == "reference":
        torch.manual_seed(cfg.run.seed)


class Draws(NamedTuple):
    """The chance of one batch."""

    latents: Tensor
    """(B, 4, h, w): a sample of the target's latents, scaled."""
    noise: Tensor
    timesteps: Tensor
    """int64 (B,), uniform."""
    drop_text: Tensor
    """bool (B,): text and features are replaced by those of no prompt."""
    keep_source: Tensor
    """float (B,): 0 where the source frame is left out, else 1."""


def draws(ids: Sequence[str], moments: Tensor, cfg: Config, schedule: Schedule, *, epoch: int, number: int) -> Draws:
    """Everything random of one micro-batch, from generators of its own: a resumed run draws the same.

    By sample: any number of processes draws the same for it. As the reference: by place in the batch, so that all
    processes draw alike. `moments` (B, 8, h, w) are those of the targets.
    """
    reference = cfg.diffusion.draws == "reference"
    keys = [f"{number}/{place}" for place in range(len(ids))] if reference else ids
    generators = [
        torch.Generator().manual_seed(randomness(cfg.run.seed, epoch, key, "diffusion").getrandbits(63)) for key in keys
    ]
    shape, device = (model.LATENT_CHANNELS, *moments.shape[2:]), moments.device
    posterior, noise = (
        torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device) for _ in range(2)
    )
    timesteps = torch.cat([torch.randint(len(schedule), (1,), generator=generator) for generator in generators])
    chance = torch.cat([torch.rand(1, generator=generator) for generator in generators])
    drop_text, keep_source = condition_dropout(chance, cfg.diffusion.drop)
    latents = cfg.diffusion.scale_factor * model.posterior_sample(moments, posterior)
    return Draws(latents, noise, timesteps.to(device), drop_text.to(device), keep_source.to(device))


def condition_dropout(chance: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Which texts to drop, bool (B,), and a factor for the sources, float (B,), from uniform numbers (B,).

    A third of the cases each: text alone, text and source, source alone; every one has probability `share`.
    """
    drop_text = chance < 2 * share
    drop_source = (chance >= share) & (chance < 3 * share)
    return drop_text, 1 - drop_source.float()


@torch.no_grad()
def validate(
    step: TrainStep, loader: Loader, data: Batches, schedule: Schedule, cfg: Config, job: Run
) -> dict[str, float]:
    """Losses of the raw weights and of their average, over all processes; empty when the run was asked to stop.

    Noise and times are the same in every validation, and nothing is dropped, so that figures can be compared.
    """
    sums: dict[str, Tensor] = {}
    nets = {"": step.model} | ({"_ema": step.average} if step.average is not None else {})
    training = step.model.training
    step.model.eval()
    with dist.gathered(step.model), dist.gathered(step.eval_model):
        for batch in job.log.progress(loader, "validation"):
            inputs = data.inputs(batch)
            drawn = draws(batch["id"], inputs.moments, cfg, schedule, epoch=-1, number=0)
            noisy = schedule.add_noise(drawn.latents, drawn.noise, drawn.timesteps)
            for suffix, net in nets.items():
                with autocast(cfg.precision, job.device):
                    predicted = net(noisy, drawn.timesteps, inputs.source, inputs.condition)
                losses = criterion(predicted, drawn.noise, drawn.timesteps, schedule)
                for name in ("simple", "vlb"):
                    key = f"val/loss_{name}{suffix}"
                    sums[key] = sums.get(key, torch.zeros((), device=job.device)) + losses[name] * len(batch["id"])
            sums["count"] = sums.get("count", torch.zeros((), device=job.device)) + len(batch["id"])
            if job.stop_requested:
                break
    step.model.train(training)
    if job.stopping():
        return {}
    parts = dist.gather({name: float(value) for name, value in sums.items()})
    total = {name: sum(part.get(name, 0.0) for part in parts) for name in parts[0]}
    count = max(total.pop("count", 0.0), 1.0)
    found = {name: value / count for name, value in total.items()}
    if step.average is None:  # the key by which the best weights are chosen
        found |= {f"{name}_ema": value for name, value in found.items()}
    return found


def show(step: TrainStep, data: Batches, schedule: Schedule, cfg: Config, job: Run) -> None:
    """Source, drawn and target frames of a few pairs, always the same, with the real sampler."""
    lego = step.eval_model
    assert isinstance(lego, Lego)
    with dist.gathered(lego):
        if dist.is_main():
            job.log.images(step.count, samples=grid(lego, data, schedule, cfg))
    dist.barrier()


if __name__ == "__main__":
    main()
