"""X3D beside its published structure run plainly: forward pass, training step, training of the last layer, memory.

python -m bench.x3d [--variants xs s m] [--rounds 5] [--threads 1] [--compile] [--clips 2]

"plain" is the published network as its reference code runs it: contiguous tensors, one library call per layer, batch
norms and activations on their own. It is written out below, takes the same state-dict, and has to give the same
answers before anything is timed. Rounds are interleaved in one process, so that the machine's moods hit all alike; the
table shows medians as ratios to plain (above 1: faster than it), best times in ms in brackets. On one thread the
process's own CPU time is taken, which other work on the machine disturbs least. With a GPU everything is also timed
there, in bf16.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.ucf50_x3d.model import VARIANTS, X3D, freeze, fuse, train

CLASSES = 50


# ---------------------------------------------------------------------------------------------- the published structure


class Swish(torch.autograd.Function):
    """x * sigmoid(x) that keeps only its input for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return grad * (gate * (1 + x * (1 - gate)))


def conv(
    inputs: int, outputs: int, size: tuple[int, int, int] = (1, 1, 1), stride: int = 1, **kwargs: Any
) -> nn.Conv3d:
    padding = tuple(side // 2 for side in size)
    return nn.Conv3d(inputs, outputs, size, (1, stride, stride), padding, **{"bias": False, **kwargs})


class Squeeze(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        first, second = conv(channels, squeezed, bias=True), conv(squeezed, channels, bias=True)
        self.block = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.block(x.mean((2, 3, 4), keepdim=True))


class PlainBottleneck(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, squeezed: int) -> None:
        super().__init__()
        self.conv_a, self.norm_a = conv(inputs, inner), nn.BatchNorm3d(inner)
        self.conv_b = conv(inner, inner, (3, 3, 3), stride, groups=inner)
        squeeze = Squeeze(inner, squeezed) if squeezed else nn.Identity()
        self.norm_b = nn.Sequential(nn.BatchNorm3d(inner), squeeze)
        self.conv_c, self.norm_c = conv(inner, outputs), nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.conv_a(x)))
        x = Swish.apply(self.norm_b(self.conv_b(x)))
        return self.norm_c(self.conv_c(x))


class PlainBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, squeezed: int) -> None:
        super().__init__()
        self.branch1_conv = conv(inputs, outputs, stride=stride) if stride > 1 else nn.Identity()
        self.branch1_norm = nn.BatchNorm3d(outputs) if inputs != outputs else nn.Identity()
        self.branch2 = PlainBottleneck(inputs, int(2.25 * outputs), outputs, stride, squeezed)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch1_norm(self.branch1_conv(x)) + self.branch2(x))


class PlainPool(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, window: tuple[int, int, int]) -> None:
        super().__init__()
        self.pre_conv, self.pre_norm = conv(inputs, inner), nn.BatchNorm3d(inner)
        self.pool, self.post_conv = nn.AvgPool3d(window, 1), conv(inner, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.post_conv(self.pool(F.relu(self.pre_norm(self.pre_conv(x))))))


class Plain(nn.Module):
    """X3D as published."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        size, width = VARIANTS[variant], VARIANTS[variant].widths[0]
        stem = nn.Module()
        stem.conv = nn.Sequential()
        stem.conv.conv_t = conv(3, width, (1, 3, 3), 2)
        stem.conv.conv_xy = conv(width, width, (5, 1, 1), groups=width)
        stem.norm = nn.BatchNorm3d(width)
        self.blocks = nn.ModuleList([stem])
        for depth, outputs, squeezed in zip(size.depths, size.widths, (8, 8, 16, 32), strict=True):
            stage = nn.Module()
            stage.res_blocks = nn.Sequential()
            for index in range(depth):
                excited = 0 if index % 2 else squeezed
                stage.res_blocks.append(PlainBlock(width, outputs, 1 if index else 2, excited))
                width = outputs
            self.blocks.append(stage)
        head = nn.Module()
        head.pool = PlainPool(width, int(2.25 * width), size.features, size.window)
        head.dropout, head.proj = nn.Dropout(0.5), nn.Linear(size.features, CLASSES)
        self.blocks.append(head)

    def forward(self, video: Tensor) -> Tensor:
        stem, *stages, head = self.blocks
        x = F.relu(stem.norm(stem.conv(video)))
        for stage in stages:
            x = stage.res_blocks(x)
        x = head.dropout(head.pool(x)).permute(0, 2, 3, 4, 1)
        return F.adaptive_avg_pool3d(head.proj(x).permute(0, 4, 1, 2, 3), 1).flatten(1)


# --------------------------------------------------------------------------------------------------------------- timing


def race(runners: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every round of every runner, in shuffled order, after one unmeasured call each."""
    for run in runners.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name in random.sample(list(runners), len(runners)):
            start = clock()
            runners[name]()
            times[name].append(clock() - start)
    return times


def show(title: str, times: dict[str, list[float]], notes: dict[str, str] | None = None) -> None:
    """One line per runner: its ratio to the first."""
    reference = statistics.median(next(iter(times.values())))
    print(f"  {title}")
    for name, seconds in times.items():
        ratio = reference / statistics.median(seconds)
        note = f"  {notes[name]}" if notes and name in notes else ""
        print(f"    {name:<34} {ratio:5.2f}x   [{1e3 * min(seconds):9.1f} ms]{note}", flush=True)


def kept_for_backward(forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters not counted."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(sizes.values())


def clock_for(device: torch.device, threads: int) -> Callable[[], float]:
    if device.type == "cuda":

        def synchronized() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return synchronized
    return time.process_time if threads == 1 else time.perf_counter


# ------------------------------------------------------------------------------------------------------------- the race


def networks(variant: str, device: torch.device) -> tuple[Plain, X3D]:
    """The plain network and ours, with the same weights."""
    torch.manual_seed(0)
    ours = X3D(variant, CLASSES)
    for name, parameter in ours.named_parameters():
        if name.endswith("norm_c.weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)  # at their start values the residual branches would add nothing
    plain = Plain(variant)
    plain.load_state_dict(ours.state_dict())
    return plain.to(device), ours.to(device)


def bench(variant: str, args: argparse.Namespace, device: torch.device) -> None:
    size = VARIANTS[variant]
    clock = clock_for(device, args.threads)
    on_gpu = device.type == "cuda"
    compiled = args.compile or on_gpu
    plain, ours = networks(variant, device)
    one = torch.randn(1, 3, size.frames, size.crop, size.crop, device=device)
    batch = torch.randn(args.clips, 3, size.frames, size.crop, size.crop, device=device)
    labels = torch.arange(args.clips, device=device) % CLASSES
    print(f"X3D-{variant.upper()}, {size.frames}x{size.crop}x{size.crop}, {device.type}")

    def half(run: Callable[[], Any]) -> Callable[[], Any]:
        def inner() -> Any:
            with torch.autocast(device.type, torch.bfloat16):
                return run()

        return inner

    def forward(model: nn.Module, clips: Tensor) -> Callable[[], Tensor]:
        @torch.no_grad()
        def run() -> Tensor:
            return model(clips)

        return run

    clips = batch if on_gpu else one
    plain.eval()
    ours.eval()
    fused = fuse(ours)
    runners = {"plain": forward(plain, clips), "ours": forward(ours, clips), "ours, fused": forward(fused, clips)}
    if compiled:
        runners["ours, fused, compiled"] = forward(torch.compile(fused), clips)
    answer = runners["plain"]()
    for name, run in runners.items():
        difference = float((run() - answer).abs().max() / answer.abs().max())
        assert difference < 1e-3, f"{name} gives other answers than plain: {difference:.1e}"
    if on_gpu:
        halves = {f"{name}, bf16": half(run) for name, run in runners.items()}
        runners |= halves
    show(f"forward, {len(clips)} clip(s)", race(runners, args.rounds, clock))

    def step(model: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            for parameter in model.parameters():
                parameter.grad = None
            loss = F.cross_entropy(model(batch).float(), labels)
            loss.backward()
            return loss

        return run

    plain.train()
    ours.train()
    steps = {"plain": step(plain), "ours": step(ours)}
    if compiled:
        steps["ours, compiled"] = step(torch.compile(ours))
    notes = {
        name: f"keeps {kept_for_backward(lambda model=model: model(batch)) / 2**20:,.0f} MB for the backward pass"
        for name, model in (("plain", plain), ("ours", ours))
    }
    if on_gpu:
        steps |= {f"{name}, bf16": half(run) for name, run in steps.items()}
    show(f"training step, {args.clips} clips", race(steps, args.rounds, clock), notes)

    for model in (plain, ours):
        model.requires_grad_(False)
        model.blocks[-1].proj.requires_grad_(True)
    # One network in two modes: what a runner needs is set in the runner.
    steps = {
        "plain, batch statistics": lambda: (plain.train(), step(plain)()),
        "ours, batch statistics": lambda: (train(freeze(ours), "reference"), step(ours)()),
        "ours, running statistics": lambda: (train(freeze(ours)), step(ours)()),
    }
    show(f"step of the last layer only, {args.clips} clips", race(steps, args.rounds, clock))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=["xs", "s", "m"], choices=("xs", "s", "m", "l"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clips", type=int, default=2, help="clips in a training step")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    for device in devices:
        for variant in args.variants:
            bench(variant, args, device)


if __name__ == "__main__":
    main()
