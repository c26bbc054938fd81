"""MeMViT-16 beside its published structure run plainly: forward pass with a full memory, training step.

python -m bench.lta_model [--rounds 3] [--threads 1] [--side 224]

"plain" is the network as its reference code runs it: heads become samples and are copied to pool them, relative
positions are added to the logits table by table and entry by entry, stored keys and values are projected again at every
step, and every block caches and compresses. It is written out below, takes the same state-dict, and has to give the
same answers over six steps before anything is timed. Rounds are interleaved in one process; CPU time of the process on
one thread; medians of ratios (above 1: faster than plain) and best times. With a GPU both are timed there too, ours in
bf16 as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.lta_memvit.model import VARIANTS, MeMViT
from projects.lta_memvit.model.heads import Projection
from projects.lta_memvit.model.memory import ClipMemory, Reach
from projects.lta_memvit.model.memvit import Attention, Block
from projects.lta_memvit.model.plan import Grid

CLASSES = 400
GAP, LENGTH = 2, 3


# ---------------------------------------------------------------------------------------------- the published structure


class Plain:
    """The published forward pass over the modules of a network of ours, whose weights it uses."""

    def __init__(self, net: MeMViT) -> None:
        self.net = net
        self.cache: list[list[tuple[Tensor, Tensor]]] = [[] for _ in net.blocks]

    def __call__(self, video: Tensor) -> Tensor:
        net = self.net
        kept = len(self.cache[0])
        chosen = [kept - GAP * back for back in range(min(kept // GAP, LENGTH - 1), 0, -1)]
        patches = net.patch_embed.proj(video)
        grid: Grid = (patches.shape[2], patches.shape[3], patches.shape[4])
        x = torch.cat([net.cls_token.expand(len(video), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        for number, block in enumerate(net.blocks):
            assert isinstance(block, Block)
            x, grid = self.block(block, number, x, grid, chosen if number % 2 == 0 else [])
        return net.head(net.norm(x)[:, 0])

    def block(self, block: Block, number: int, x: Tensor, grid: Grid, chosen: list[int]) -> tuple[Tensor, Grid]:
        plan, normed = block.plan, block.norm1(x)
        attended, pooled = self.attention(block.attn, number, normed, grid, chosen)
        if plan.inputs != plan.inner:
            x = block.proj(normed)
        stride = plan.q_stride
        kernel = stride + 1 if stride > 1 else 1
        video = x[:, 1:].transpose(1, 2).reshape(len(x), -1, *grid)
        skip = F.max_pool3d(video, (1, kernel, kernel), (1, stride, stride), (0, stride // 2, stride // 2))
        x = torch.cat([x[:, :1], skip.flatten(2).transpose(1, 2)], 1) + attended
        return x + block.mlp(block.norm2(x)), pooled

    def attention(self, attn: Attention, number: int, x: Tensor, grid: Grid, chosen: list[int]) -> tuple[Tensor, Grid]:
        batch, heads = len(x), attn.plan.heads
        split = x.reshape(batch, x.shape[1], heads, -1).permute(0, 2, 1, 3)
        q, q_grid = pool(split, attn.pool_q, grid, attn.norm_q)
        k, k_grid = pool(split, attn.pool_k, grid, attn.norm_k)
        v, _ = pool(split, attn.pool_v, grid, attn.norm_v)
        q, k, v = (y.permute(0, 2, 1, 3).reshape(batch, y.shape[2], -1) for y in (q, k, v))
        cache = self.cache[number]
        cache.append((k.detach(), v.detach()))
        small: Grid | None = None
        if len(cache) > 1:
            older = [y.unsqueeze(1) for y in cache[-2]]
            new_k, small = pool(older[0], attn.compress_k, k_grid, attn.norm_compress_k)
            new_v, _ = pool(older[1], attn.compress_v, k_grid, attn.norm_compress_v)
            cache[-2] = (new_k.squeeze(1), new_v.squeeze(1))
        keys = torch.cat([*(cache[i][0] for i in chosen), k], 1)
        values = torch.cat([*(cache[i][1] for i in chosen), v], 1)
        if len(cache) > 1:
            cache[-2] = (cache[-2][0].detach(), cache[-2][1].detach())
        if len(cache) > GAP * (LENGTH - 1):
            del cache[0]
        q, keys, values = (
            linear(y).reshape(batch, -1, heads, attn.plan.inner // heads).permute(0, 2, 1, 3)
            for linear, y in ((attn.q, q), (attn.k, keys), (attn.v, values))
        )
        logits = (q @ keys.transpose(-2, -1)) * attn.scale
        present = 1 + k_grid[0] * k_grid[1] * k_grid[2]
        logits = add_space(logits, q, q_grid, k_grid, attn.rel_pos_h, attn.rel_pos_w, -present)
        logits = add_time(logits, q, q_grid, k_grid, attn.rel_pos_t, -present, 0)
        if chosen:
            assert small is not None
            size = 1 + small[0] * small[1] * small[2]
            for entry in range(len(chosen)):
                start = entry * size
                logits = add_space(logits, q, q_grid, small, attn.rel_pos_mem_h, attn.rel_pos_mem_w, start)
                behind = 4 * ((len(chosen) - 1 - entry) * small[0])
                logits = add_time(logits, q, q_grid, small, attn.rel_pos_mem_t, start, behind, stride=4)
        added = torch.cat([torch.zeros_like(q[:, :, :1]), q[:, :, 1:]], 2)
        out = (logits.softmax(-1) @ values + added).transpose(1, 2).reshape(batch, -1, attn.plan.inner)
        return attn.proj(out), q_grid


def pool(tokens: Tensor, conv: nn.Conv3d, grid: Grid, norm: nn.Module) -> tuple[Tensor, Grid]:
    batch, heads, _, width = tokens.shape
    video = tokens[:, :, 1:].reshape(batch * heads, *grid, width).permute(0, 4, 1, 2, 3).contiguous()
    video = F.conv3d(video, conv.weight, None, conv.stride, conv.padding, groups=width)
    pooled: Grid = (video.shape[2], video.shape[3], video.shape[4])
    together = torch.cat([tokens[:, :, :1], video.reshape(batch, heads, width, -1).transpose(2, 3)], 2)
    return norm(together), pooled


def add_space(
    logits: Tensor, q: Tensor, q_grid: Grid, k_grid: Grid, rows: Tensor, columns: Tensor, start: int
) -> Tensor:
    batch, heads, _, width = q.shape
    (t, h, w), (kt, kh, kw) = q_grid, k_grid
    patches = q[:, :, 1:].reshape(batch, heads, t, h, w, width)

    def looked_up(table: Tensor, queries: int, keys: int) -> Tensor:
        near, far = max(keys / queries, 1.0), max(queries / keys, 1.0)
        index = torch.arange(queries)[:, None] * near - torch.arange(keys)[None] * far + (keys - 1) * far
        return table[index.long()]

    by_row = torch.einsum("bnthwc,hkc->bnthwk", patches, looked_up(rows, h, kh))
    by_column = torch.einsum("bnthwc,wkc->bnthwk", patches, looked_up(columns, w, kw))
    begin = (logits.shape[-1] + start if start < 0 else start) + 1
    end = begin + kt * kh * kw
    part = logits[:, :, 1:, begin:end].reshape(batch, heads, t, h, w, kt, kh, kw)
    part = part + by_row[..., None, :, None] + by_column[..., None, None, :]
    logits[:, :, 1:, begin:end] = part.reshape(batch, heads, t * h * w, kt * kh * kw)
    return logits


def add_time(
    logits: Tensor, q: Tensor, q_grid: Grid, k_grid: Grid, table: Tensor, start: int, behind: int, stride: int = 1
) -> Tensor:
    batch, heads, _, width = q.shape
    (t, h, w), (kt, kh, kw) = q_grid, k_grid
    patches = q[:, :, 1:].reshape(batch, heads, t, h, w, width)
    index = torch.arange(t)[:, None] + stride * (kt - 1 - torch.arange(kt)[None]) + behind
    by_time = torch.einsum("bnthwc,tkc->bnthwk", patches, table[index])
    begin = (logits.shape[-1] + start if start < 0 else start) + 1
    end = begin + kt * kh * kw
    part = logits[:, :, 1:, begin:end].reshape(batch, heads, t, h, w, kt, kh, kw) + by_time[..., None, None]
    logits[:, :, 1:, begin:end] = part.reshape(batch, heads, t * h * w, kt * kh * kw)
    return logits


# -------------------------------------------------------------------------------------------------------------- timings


def network(side: int, device: torch.device) -> MeMViT:
    torch.manual_seed(0)
    memory = ClipMemory(Reach(GAP, LENGTH - 1))
    head = Projection(768, CLASSES)
    return MeMViT(VARIANTS["memvit_16"], frames=16, crop=side, head=head, memory=memory).to(device)


def ours(net: MeMViT) -> Callable[[Tensor], Tensor]:
    return lambda video: net.head(net.features(video, ["a"]))


def check(net: MeMViT, plain: Plain, video: Tensor) -> None:
    """The same answers over six steps, so with every memory entry in use."""
    net.eval()
    with torch.no_grad():
        for step in range(6):
            clip = video.roll(step, 3)
            torch.testing.assert_close(ours(net)(clip), plain(clip), atol=2e-4, rtol=1e-4)


def step(call: Callable[[Tensor], Tensor], net: MeMViT, video: Tensor) -> None:
    """Forward, cross-entropy, backward, SGD."""
    loss = F.cross_entropy(call(video).float(), torch.tensor([3], device=video.device))
    loss.backward()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-6)
                parameter.grad = None


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - begin
    begin = time.process_time()
    work()
    return time.process_time() - begin


def compare(
    name: str,
    plain: Callable[[], object],
    alternatives: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
) -> None:
    times: dict[str, list[float]] = {key: [] for key in ("plain", *alternatives)}
    for _ in range(rounds):
        for key, work in {"plain": plain, **alternatives}.items():
            times[key].append(seconds(work, device))
    for key in alternatives:
        ratio = statistics.median(p / a for p, a in zip(times["plain"], times[key], strict=True))
        best = f"plain {min(times['plain']):.2f} s, ours {min(times[key]):.2f} s"
        print(f"{name:<32} {key:<12} {ratio:5.2f}   {best}", flush=True)


def run(device: torch.device, side: int, rounds: int) -> None:
    net = network(side, device)
    plain = Plain(net)
    video = torch.randn(1, 3, 16, side, side, device=device)
    check(net, plain, video)
    half = {"bf16": torch.autocast(device.type, torch.bfloat16)} if device.type == "cuda" else {}

    def forward(call: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad():
            call(video)

    def halved(work: Callable[[], None]) -> None:
        with half["bf16"]:
            work()

    alternatives: dict[str, Callable[[], object]] = {"fp32": lambda: forward(ours(net))}
    if half:
        alternatives["bf16"] = lambda: halved(lambda: forward(ours(net)))
    compare(f"{device.type}, forward, memory full", lambda: forward(plain), alternatives, rounds, device)

    net.train()
    trained = lambda: step(ours(net), net, video)  # noqa: E731
    for _ in range(5):
        trained()
    alternatives = {"fp32": trained}
    if half:
        alternatives["bf16"] = lambda: halved(trained)
    compare(f"{device.type}, training step", lambda: step(plain, net, video), alternatives, rounds, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", type=int, default=224)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'work':<32} {'precision':<12} {'ratio':>5}   best")
    run(torch.device("cpu"), args.side, args.rounds)
    if torch.cuda.is_available():
        run(torch.device("cuda"), args.side, args.rounds)


if __name__ == "__main__":
    main()
