"""A training step of LEGO's diffusion stage beside the plain way: encode frames and prompts anew at every step.

python -m bench.lego_ldm [--width 64] [--size 64] [--batch 4] [--rounds 5]

The plain way is that of diffusers' InstructPix2Pix example: autoencoder and text encoder run in each step, attention is
written out, convolutions are laid out as they come. Ours reads moments and states from the caches, attends with
scaled_dot_product_attention and keeps convolutions in channels_last. Both start from the same weights, draw the same
noise and take the same AdamW step; losses and updated weights are compared before anything is timed. Peak memory is
that of a process of its own for each way, above what it held before the networks were made; beside it stands what
projects.lego.memory counts for the same step without running it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from core.data import LoaderConfig
from core.optim import OptimConfig
from core.step import TrainStep
from projects.lego import memory, model
from projects.lego.config import Config, DataConfig, ModelConfig, ShowConfig
from projects.lego.losses import criterion
from projects.lego.model import Condition, Lego, Schedule
from projects.lego.train import decay_everywhere, freeze

OPTIM = OptimConfig(name="adamw", lr=1e-4, weight_decay=0.01, schedule="constant")


def make(args: argparse.Namespace) -> tuple[Lego, Any, Any]:
    """The networks of Stable Diffusion's structure at a width the machine can hold; the encoders in proportion."""
    torch.manual_seed(0)
    share, context = args.width / 320, context_width(args)
    lego = model.Lego(width=args.width, context=context, feature_width=args.features)
    freeze(lego, train_conditioner=False)
    vae = model.build_vae(max(32, round(128 * share / 32) * 32))
    text = model.TextEncoder(width=context, layers=12, heads=context // 64, vocabulary=49408)
    return lego.train(), vae, text


def context_width(args: argparse.Namespace) -> int:
    """The width of all conditions, in proportion."""
    return max(64, round(768 * args.width / 320 / 64) * 64)


def batch(args: argparse.Namespace) -> dict[str, Tensor]:
    """One batch as it leaves the disk, with its chance."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    size, latent = args.batch, args.size // 8
    return {
        "source": noise(size, 3, args.size, args.size).clamp(-1, 1),
        "target": noise(size, 3, args.size, args.size).clamp(-1, 1),
        "tokens": torch.randint(0, 49407, (size, 77), generator=generator),
        "image_features": noise(size, 256, args.features),
        "text_features": noise(size, 77, args.features),
        "posterior": noise(size, 4, latent, latent),
        "noise": noise(size, 4, latent, latent),
        "timesteps": torch.randint(0, 1000, (size,), generator=generator),
    }


def quiet(lego: nn.Module) -> None:
    """No drop-out: both ways are to give the same numbers."""
    for module in lego.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0


class Plain:
    """Frozen networks run in the step; attention written out; torch's own loop of AdamW."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.lego, self.vae, self.text = make(args)
        quiet(self.lego)
        self.lego.unet.set_attn_processor(AttnProcessor())
        learned = [p for p in self.lego.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, OPTIM.lr, betas=OPTIM.betas, weight_decay=OPTIM.weight_decay)
        self.schedule = Schedule()

    def __call__(self, data: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            source = model.encode(self.vae, data["source"])[:, :4]
            moments = model.encode(self.vae, data["target"])
            states = self.text(data["tokens"])
        latents = 0.18215 * model.posterior_sample(moments, data["posterior"])
        noisy = self.schedule.add_noise(latents, data["noise"], data["timesteps"])
        condition = Condition(states, data["image_features"], data["text_features"])
        predicted = self.lego(noisy, data["timesteps"], source, condition)
        loss = criterion(predicted, data["noise"], data["timesteps"], self.schedule)["total"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def encoded(args: argparse.Namespace, data: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the caches hold of a batch."""
    _, vae, text = make(args)
    with torch.no_grad():
        return {
            "source": model.encode(vae, data["source"])[:, :4],
            "moments": model.encode(vae, data["target"]),
            "states": text(data["tokens"]),
        }


class Ours:
    """The UNet alone, on what the caches hold."""

    def __init__(self, args: argparse.Namespace, cached: dict[str, Tensor], *, recompute: bool = False) -> None:
        self.lego, _, _ = make(args)
        quiet(self.lego)
        if recompute:
            self.lego.unet.enable_gradient_checkpointing()
        self.cached = cached
        rules = decay_everywhere(OPTIM.weight_decay)
        self.step = TrainStep(self.lego, OPTIM, batches_per_epoch=10**6, channels_last=True, rules=rules)
        self.schedule = Schedule()

    def __call__(self, data: dict[str, Tensor]) -> Tensor:
        latents = 0.18215 * model.posterior_sample(self.cached["moments"], data["posterior"])
        noisy = self.schedule.add_noise(latents, data["noise"], data["timesteps"])
        condition = Condition(self.cached["states"], data["image_features"], data["text_features"])
        with self.step.forward() as net:
            predicted = net(noisy, data["timesteps"], self.cached["source"], condition)
        loss = criterion(predicted, data["noise"], data["timesteps"], self.schedule)["total"]
        self.step.backward(loss)
        return loss.detach()


def timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def high_water() -> int:
    """The most memory that this process has held, in bytes; the kernel's other count begins with the parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peak(which: str, args: argparse.Namespace, answers: Any) -> None:
    """In a process of its own: the most memory that two steps took, in bytes."""
    torch.set_num_threads(args.threads)
    data = batch(args)
    before = high_water()
    if which == "plain":
        step: Plain | Ours = Plain(args)
    else:  # caches were filled by another process; any values do
        latents, width = data["noise"], context_width(args)
        cached = {
            "source": latents,
            "moments": latents.repeat(1, 2, 1, 1),
            "states": torch.zeros(args.batch, 77, width),
        }
        step = Ours(args, cached, recompute=which == "recomputed")
    for _ in range(2):
        step(data)
    answers.send(high_water() - before)


def measured(which: str, args: argparse.Namespace) -> int:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=peak, args=(which, args, theirs))
    process.start()
    theirs.close()
    found: int = ours.recv()
    process.join()
    return found


def counted(args: argparse.Namespace, *, recompute: bool) -> int:
    """What projects.lego.memory says of our step, in bytes."""
    width, context = args.width, context_width(args)
    cfg = Config(
        data=DataConfig(size=(args.size, args.size)),
        model=ModelConfig(width=width, context=context, feature_width=args.features, checkpointing=recompute),
        loader=LoaderConfig(batch_size=args.batch),
        optim=OPTIM,
        precision="fp32",
        show=ShowConfig(every=0),
    )
    return memory.estimate(cfg)["total"]


def sampling(args: argparse.Namespace) -> None:
    """A sampler step with conditions computed once against computing them anew; the answers are compared first."""
    from projects.lego import sampler
    from projects.lego.model import Conditioner

    lego, _, _ = make(args)
    lego.eval()
    data = batch(args)
    latent = args.size // 8
    noises = [torch.randn(args.batch, 4, latent, latent, generator=torch.Generator().manual_seed(n)) for n in range(9)]
    with torch.inference_mode():
        width = lego.conditioner.projection_img.out_features
        text = torch.randn(args.batch + 1, 77, width, generator=torch.Generator().manual_seed(2))
        context = lego.conditioner(Condition(text[1:], data["image_features"], data["text_features"]))
        null = Conditioner.null(text[:1], context.shape[1])

    def run(shortcut: bool) -> Tensor:
        rest = iter(noises)
        return sampler.sample(
            lego, Schedule(), source=noises[0], context=context, null=null, noise=lambda: next(rest), steps=4,
            shortcut=shortcut,
        )  # fmt: skip

    plain, short = run(False), run(True)
    error = float((plain - short).abs().max() / plain.std())
    assert error < 1e-3, error
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(args.rounds):
        for shortcut, found in times.items():
            found.append(timed(lambda shortcut=shortcut: run(shortcut)) / 4)
    slow, fast = (statistics.median(times[shortcut]) for shortcut in (False, True))
    print(f"\nsampler step of {args.batch} frames, three passes (largest difference {error:.1e} of the deviation)")
    print(f"{'conditions anew in each step':<44}{slow:>9.3f} s")
    print(f"{'keys and values once, one zero token for 333':<44}{fast:>9.3f} s{slow / fast:>9.2f} x")


def training(args: argparse.Namespace) -> None:
    """A training step both ways; losses and updated weights are compared first."""
    data = batch(args)
    plain, ours = Plain(args), Ours(args, encoded(args, data))
    losses = [float(step(data)) for step in (plain, ours)]
    assert abs(losses[0] - losses[1]) < 1e-4 * losses[0], losses
    for (name, a), b in zip(plain.lego.unet.named_parameters(), ours.lego.unet.parameters(), strict=True):
        moved = float((a - b).detach().abs().max())
        assert moved <= 2.5 * OPTIM.lr, (name, moved)  # Adam's first step has the size of lr, whatever the gradient
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(args.rounds):
        for name, step in (("plain", plain), ("ours", ours)):
            times[name].append(timed(lambda step=step: step(data)))
    slow, fast = (statistics.median(times[name]) for name in ("plain", "ours"))
    count = sum(p.numel() for p in ours.lego.unet.parameters())
    print(f"training step: UNet of {count / 1e6:.0f} M parameters, {args.batch} pairs of {args.size}x{args.size}, fp32")
    print(f"{'encoders in each step, attention written out':<44}{slow:>9.3f} s")
    print(f"{'caches, SDPA, channels_last':<44}{fast:>9.3f} s{slow / fast:>9.2f} x")


def sizes(args: argparse.Namespace) -> None:
    """Peak memory of a step each way, and what is counted without running it."""
    args = argparse.Namespace(**{**vars(args), "size": args.memory_size, "batch": args.memory_batch})
    title = f"peak memory of a training step, {args.batch} pairs of {args.size}x{args.size}"
    print(f"\n{title:<54}{'measured':>12}{'counted':>12}")
    print(f"{'encoders in each step, attention written out':<54}{measured('plain', args) / 2**20:>8.0f} MiB")
    for name, title in (("ours", "caches, SDPA, channels_last"), ("recomputed", "and activations recomputed")):
        told = counted(args, recompute=name == "recomputed") / 2**20
        print(f"{title:<54}{measured(name, args) / 2**20:>8.0f} MiB{told:>8.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="channels of the UNet's first level; official: 320")
    parser.add_argument("--size", type=int, default=128, help="pixels of a frame; official: 256")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--memory-size", type=int, default=256, help="pixels where memory is measured; official: 256")
    parser.add_argument("--memory-batch", type=int, default=4)
    parser.add_argument("--features", type=int, default=512, help="width of the VLLM features; official: 5120")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    training(args)
    sizes(args)
    sampling(args)


if __name__ == "__main__":
    main()
