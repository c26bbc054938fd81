"""The network of THUMOS14 beside its published structure run plainly: inference of 300 and 2304 steps, training step.

python -m bench.actionformer_network [--rounds 3]

"plain" is the network as its reference code runs it: channels first, every video padded to 2304 steps, layer norms of
single operations, local attention in overlapping chunks, heads level by level. It is written out below over the
weights of a network of ours, and has to give the same answers and the same loss before anything is timed. Rounds are
interleaved in one process; processor time of one thread; medians of ratios (above 1: faster than plain), best times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import config
from projects.actionformer import convert, train
from projects.actionformer.config import Config
from projects.actionformer.losses import Criterion
from projects.actionformer.model.detector import ActionFormer, Outputs

LENGTH = 2304


class Plain:
    """The published forward pass over the modules of a network of ours."""

    def __init__(self, net: ActionFormer) -> None:
        self.net = net

    def __call__(self, features: Tensor) -> Outputs:
        net: Any = self.net
        x = F.pad(features, (0, LENGTH - features.shape[2]))
        mask = (torch.arange(LENGTH) < features.shape[2]).expand(len(x), 1, -1)
        for layer, norm in zip(net.backbone.embd, net.backbone.embd_norm, strict=True):
            x = F.relu(normalized(conv(x, layer.conv, mask), norm))
        for block in net.backbone.stem:
            x, mask = self.block(block, x, mask)
        levels = [(x, mask)]
        for block in net.backbone.branch:
            levels.append(self.block(block, *levels[-1]))
        levels = [(normalized(y, norm), m) for norm, (y, m) in zip(net.neck.fpn_norms, levels, strict=True)]
        logits, offsets = [], []
        for (y, m), scale in zip(levels, net.reg_head.scale, strict=True):
            logits.append(conv(self.trunk(net.cls_head, y, m), net.cls_head.cls_head.conv, m))
            offsets.append(F.relu(conv(self.trunk(net.reg_head, y, m), net.reg_head.offset_head.conv, m) * scale.scale))
        lengths = tuple(m.shape[2] for _, m in levels)
        points = net.points(lengths, x.device)
        classes, sides = (torch.cat(parts, 2).transpose(1, 2) for parts in (logits, offsets))
        return Outputs(classes, sides, torch.cat([m[:, 0] for _, m in levels], 1), points, lengths)

    def trunk(self, head: Any, x: Tensor, mask: Tensor) -> Tensor:
        for layer, norm in zip(head.head, head.norm, strict=True):
            x = F.relu(normalized(conv(x, layer.conv, mask), norm))
        return x

    def block(self, block: Any, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        stride, attn = block.stride, block.attn
        y, shown = normalized(x, block.ln1), mask[:, :, ::stride]
        q, k, v = (
            pointwise(normalized(conv(y, own.conv, shown), norm), linear)
            for own, norm, linear in (
                (attn.query_conv, attn.query_norm, attn.query),
                (attn.key_conv, attn.key_norm, attn.key),
                (attn.value_conv, attn.value_norm, attn.value),
            )
        )
        y = pointwise(chunked(q, k, v, shown, attn.heads, attn.window), attn.proj) * shown
        x = F.max_pool1d(x, stride + 1, stride, (stride + 1) // 2) if stride > 1 else x
        x = x * shown + block.drop_path_attn.scale[:, None] * y
        first, second = block.mlp[0], block.mlp[3]
        y = pointwise(F.gelu(pointwise(normalized(x, block.ln2), first)), second)
        return x + block.drop_path_mlp.scale[:, None] * (y * shown), shown


def conv(x: Tensor, layer: nn.Conv1d, mask: Tensor) -> Tensor:
    return F.conv1d(x, layer.weight, layer.bias, layer.stride, layer.padding, 1, layer.groups) * mask


def pointwise(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.conv1d(x, layer.weight.unsqueeze(2), layer.bias)


def normalized(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centered = x - x.mean(1, keepdim=True)
    spread = torch.sqrt((centered**2).mean(1, keepdim=True) + norm.eps)
    return centered / spread * norm.weight[:, None] + norm.bias[:, None]


def chunked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, heads: int, window: int) -> Tensor:
    """Chunks of twice the half window, which overlap by half; each query keeps the diagonals within its window."""
    batch, width, length = q.shape
    half = window // 2
    q, k, v = (y.reshape(batch * heads, width // heads, length).transpose(1, 2) for y in (q, k, v))
    keys, values = (F.pad(y, (0, 0, half, half)).unfold(1, 3 * half, half) for y in (k, v))  # (BH,n,D,3·half)
    queries = (q * (width // heads) ** -0.5).unflatten(1, (-1, half))
    scores = queries @ keys
    shown = F.pad(mask[:, 0], (half, half)).unfold(1, 3 * half, half).repeat_interleave(heads, 0)[:, :, None]
    place = torch.arange(3 * half) - torch.arange(half)[:, None]
    near = (place >= 0) & (place < window)
    scores = torch.where(near, scores + torch.where(shown, 0.0, -1e4), -torch.inf)
    y = (scores.softmax(-1) @ values.transpose(2, 3)).flatten(1, 2)
    return y.transpose(1, 2).reshape(batch, width, length)


def videos(batch: int, length: int) -> dict[str, Any]:
    """Features as readers lay them out, and fifteen actions of many lengths for each."""
    torch.manual_seed(0)
    lengths = torch.tensor([4, 8, 16, 30, 60, 100, 5, 10, 20, 40, 80, 120, 6, 12, 25])
    starts = torch.arange(15) * 150.0 + 10
    return {
        "features": torch.randn(batch, length, 2048).transpose(1, 2),
        "mask": torch.ones(batch, length, dtype=torch.bool),
        "lengths": [length] * batch,
        "segments": [torch.stack([starts, starts + lengths], 1)] * batch,
        "labels": [torch.arange(15)] * batch,
    }


def compare(name: str, plain: Callable[[], object], ours: Callable[[], object], rounds: int) -> None:
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        marks = [time.process_time()]
        for work in (plain, ours):
            work()
            marks.append(time.process_time())
        times.append((marks[1] - marks[0], marks[2] - marks[1]))
    ratio = statistics.median(p / o for p, o in times)
    best = [min(column) for column in zip(*times, strict=True)]
    print(f"{name:<28} {ratio:5.2f}   plain {best[0]:.2f} s, ours {best[1]:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cfg = config.load(Config, convert.CONFIGS / "thumos_i3d.yaml", ["model.drop_path=1e-9"])
    net = convert.build(cfg)
    assert isinstance(net, ActionFormer)
    plain = Plain(net)
    for length in (300, LENGTH):
        given = videos(1, length)
        first = given["features"].contiguous()
        with torch.inference_mode():
            net.eval()
            ours, theirs = net(given["features"], given["mask"], given["lengths"]), plain(first)
            steps = slice(0, length)
            torch.testing.assert_close(ours.logits[:, steps], theirs.logits[:, steps], atol=5e-5, rtol=1e-4)
            compare(
                f"inference, {length} steps",
                lambda: plain(first),  # noqa: B023
                lambda: net(given["features"], given["mask"], given["lengths"]),  # noqa: B023
                args.rounds,
            )
    given, criterion = videos(2, LENGTH), Criterion(cfg.loss, "actionformer", 20)
    first = given["features"].contiguous()
    net.train()
    step = train.train_step(net, cfg, 100)

    def loss(ours: bool) -> Tensor:
        outputs = net(given["features"], given["mask"], given["lengths"]) if ours else plain(first)
        return criterion(outputs, given, learn=False)["total"]

    torch.testing.assert_close(loss(True), loss(False), atol=1e-4, rtol=1e-4)
    compare(
        "training step, 2 x 2304", lambda: step.backward(loss(False)), lambda: step.backward(loss(True)), args.rounds
    )


if __name__ == "__main__":
    main()
