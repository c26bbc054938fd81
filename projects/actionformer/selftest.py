"""Do the parts of the modern backbone compute what their definitions say here, and how fast?

    python -m projects.actionformer.selftest --all
    python -m projects.actionformer.selftest --rope --block

On a GPU where there is one, else on the CPU. Each line says PASS or FAIL, the largest difference from the written-out
definition, and the time of both; the command fails when a line does.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import dist
from core.nn import Rope, attend
from projects.actionformer.config import ModelConfig
from projects.actionformer.model import Padding, build
from projects.actionformer.model.attention import ConvAttention, RotaryAttention
from projects.actionformer.model.blocks import GatedMlp, Mlp, TransformerBlock, norm

BATCH, LENGTH, WIDTH, HEADS = 2, 512, 128, 4
TOLERANCE = 1e-4


class Result(NamedTuple):
    """One line of the table."""

    name: str
    difference: float
    ours_ms: float | None = None
    other_ms: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool:
        """Is the difference small, and a number?"""
        return self.difference <= TOLERANCE

    def __str__(self) -> str:
        times = "" if self.ours_ms is None else f"{self.ours_ms:9.2f} ms"
        times += "" if self.other_ms is None else f"  {self.note} {self.other_ms:.2f} ms"
        times = times or self.note
        return f"{'PASS' if self.passed else 'FAIL'}  {self.name:<28} {self.difference:9.1e} {times}"


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Run the chosen tests; all of them when none is named."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.actionformer.selftest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--all", action="store_true", help="all of the following")
    for name, test in TESTS.items():
        parser.add_argument(f"--{name}", action="store_true", help=(test.__doc__ or "").strip().rstrip("."))
    args = parser.parse_args(argv)
    chosen = [name for name in TESTS if args.all or getattr(args, name)] or list(TESTS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sys.stdout.write(f"torch {torch.__version__} on {device}\n")
    torch.manual_seed(0)
    results = []
    with torch.inference_mode():
        for name in chosen:
            for result in TESTS[name](device):
                sys.stdout.write(f"{result}\n")
                results.append(result)
    failed = [result.name for result in results if not result.passed]
    if failed:
        sys.exit(f"selftest: {len(failed)} of {len(results)} failed: {', '.join(failed)}")
    return results


def imports(device: torch.device) -> list[Result]:
    """Every module of the project can be imported."""
    modules = ("config", "convert", "data", "eval", "losses", "model", "official", "predict", "ranges", "train")
    for module in modules:
        importlib.import_module(f"projects.actionformer.{module}")
    return [Result("imports", 0.0, note=f"{len(modules)} modules")]


def rmsnorm(device: torch.device) -> list[Result]:
    """RMS norm against its definition, and the time of layer norm."""
    x, rms, layer = _noise(device), norm(WIDTH, rms=True).to(device), norm(WIDTH).to(device)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return [Result("RMSNorm", _apart(rms(x), expected), _time(lambda: rms(x)), _time(lambda: layer(x)), "LayerNorm")]


def swiglu(device: torch.device) -> list[Result]:
    """The gated feed-forward layer against its definition, and the time of the plain one."""
    x, gated, plain = _noise(device), GatedMlp(WIDTH).to(device), Mlp(WIDTH).to(device)
    gate, up = (F.linear(x, layer.weight, layer.bias) for layer in (gated.w3, gated.w1))
    expected = F.linear(F.silu(gate) * up, gated.w2.weight, gated.w2.bias)
    return [Result("SwiGLU", _apart(gated(x), expected), _time(lambda: gated(x)), _time(lambda: plain(x)), "MLP")]


def rope(device: torch.device) -> list[Result]:
    """Rotary positions keep norms, and see differences of positions only."""
    turn = Rope(WIDTH // HEADS)
    q, k = (_noise(device).unflatten(2, (HEADS, -1)).transpose(1, 2) for _ in range(2))
    norms = _apart(turn(q).norm(dim=-1), q.norm(dim=-1))
    places = torch.arange(LENGTH, device=device)
    scores = turn(q, places) @ turn(k, places).transpose(2, 3)
    shifted = turn(q, places + 17) @ turn(k, places + 17).transpose(2, 3)
    shift = _apart(scores, shifted) / scores.abs().max().item()
    return [Result("RoPE norms", norms), Result("RoPE shifts", shift, _time(lambda: turn(q)))]


def flash(device: torch.device) -> list[Result]:
    """Fused attention, whole, windowed and with shared key heads, against softmax of the whole matrix."""
    q, k, v = (_noise(device).unflatten(2, (HEADS, -1)).transpose(1, 2) for _ in range(3))
    real = torch.arange(LENGTH, device=device) < torch.tensor([[LENGTH], [LENGTH // 2]], device=device)
    results = []
    for name, window, groups in (("attention", None, 1), ("attention, window 19", 19, 1), ("attention, GQA", None, 2)):
        keys, values = k[:, ::groups], v[:, ::groups]

        def ours(keys: Tensor = keys, values: Tensor = values, window: int | None = window) -> Tensor:
            return attend(q, keys, values, mask=real, window=window)

        def dense(keys: Tensor = keys, values: Tensor = values, window: int | None = window, g: int = groups) -> Tensor:
            keys, values = (part.repeat_interleave(g, dim=1) for part in (keys, values))
            scores = q @ keys.transpose(2, 3) * keys.shape[-1] ** -0.5
            seen = real[:, None, None]
            if window:
                place = torch.arange(LENGTH, device=device)
                seen = seen & ((place - place[:, None]).abs() <= window // 2)
            weights: Tensor = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
            return weights @ values

        keep = real[:, None, :, None]
        results.append(Result(name, _apart(ours() * keep, dense() * keep), _time(ours), _time(dense), "dense"))
    return results


def block(device: torch.device) -> list[Result]:
    """The blocks of both backbones answer alike for a batch and for its videos alone."""
    x = _noise(device)
    real = torch.ones(BATCH, LENGTH, dtype=torch.bool, device=device)
    mask = real.unsqueeze(2).float()
    plain = TransformerBlock(WIDTH, ConvAttention(WIDTH, HEADS, window=19), Mlp(WIDTH), drop_path=0.1)
    modern = TransformerBlock(
        WIDTH, RotaryAttention(WIDTH, HEADS, kv_heads=2, rope=True), GatedMlp(WIDTH), drop_path=0.1, rms_norm=True
    )
    results = []
    for name, each in (("block v1, window 19", plain), ("block v2, rotary, GQA", modern)):
        net = each.to(device).eval()
        alone = torch.cat([net(x[i : i + 1], mask[i : i + 1], real[i : i + 1]) for i in range(BATCH)])
        results.append(Result(name, _apart(net(x, mask, real), alone), _time(partial(net, x, mask, real))))
    return results


def backbone(device: torch.device) -> list[Result]:
    """Both networks say the same of a video, whether it is padded or not so far."""
    results = []
    shape = {"width": (WIDTH,), "neck_width": WIDTH, "head_width": WIDTH, "heads": HEADS}
    variants = {
        "network v1": ModelConfig(**shape, window=(19,)),
        "network v2": ModelConfig(**shape, window=(19,), backbone="modern", rope=True, swiglu=True, rms_norm=True),
    }
    features = _noise(device)[:1].transpose(1, 2)
    mask = torch.ones(1, LENGTH, dtype=torch.bool, device=device)
    for name, cfg in variants.items():
        net = build(cfg, channels=(WIDTH,), classes=5, max_length=2304).to(device).eval()
        short = net(features, mask)
        net.padding = _Untrimmed(**vars(net.padding))
        long = net(features, mask)
        parts = [
            _apart(a[:, : m.sum()], b[:, : m.sum()])
            for a, b, m in zip(
                short.logits.split(list(short.levels), 1),
                long.logits.split(list(long.levels), 1),
                short.mask[0].split(list(short.levels)),
                strict=True,
            )
        ]
        ours = build(cfg, channels=(WIDTH,), classes=5, max_length=2304).to(device).eval()
        results.append(
            Result(
                name,
                max(parts),
                _time(partial(ours, features, mask), 3),
                _time(partial(net, features, mask), 3),
                "padded to 2304",
            )
        )
    return results


def ddp(device: torch.device) -> list[Result]:
    """A process group can be used: one process here, several with torchrun."""
    world = dist.init(device.type)
    wrapped = dist.wrap(nn.Linear(4, 4).to(world.device))
    total = dist.total(torch.ones(1, device=world.device)).item()
    kind = type(wrapped).__name__
    return [Result("DDP", abs(total - world.size), note=f"{world.size} process(es), {kind}")]


TESTS: dict[str, Callable[[torch.device], list[Result]]] = {
    "imports": imports, "rmsnorm": rmsnorm, "swiglu": swiglu, "rope": rope, "flash": flash, "block": block,
    "backbone": backbone, "ddp": ddp,
}  # fmt: skip


class _Untrimmed(Padding):
    """The padding of the official code: all the way."""

    def choose(self, lengths: Sequence[int]) -> int:
        return self.reference(max(lengths))


def _noise(device: torch.device) -> Tensor:
    return torch.randn(BATCH, LENGTH, WIDTH, device=device)


def _apart(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def _time(function: Callable[[], object], repeats: int = 5) -> float:
    """The best of some runs, in milliseconds."""
    best = float("inf")
    for _ in range(repeats + 1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


if __name__ == "__main__":
    main()
