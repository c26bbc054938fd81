"""A training step of LEGO's language model beside the plain way: batches as they come, logits of every position.

python -m bench.lego_vlm [--width 256] [--layers 4] [--batch 8] [--rounds 5]

The plain way is that of LLaVA's training code: conversations in random order padded to the longest of their batch, and
the vocabulary met by every position, question and padding too. Ours puts texts of like length together and makes logits
where something is learned. Both run the same network on batches of the same conversations; losses of one batch are
compared before anything is timed. Time is per conversation, over the batches that hold the same share of all lengths.
Then the features of descriptions that are there already: one pass (`Vlm.read`) beside writing them token by token.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.lego.conversations import Bucketed, waste
from projects.lego.losses import token_cross_entropy
from projects.lego.model.vlm import Vlm
from projects.lego.prompts import IGNORED, IMAGE, collate
from projects.lego.train_vlm import Flops

QUESTION = 90  # tokens before an answer: system sentence and question
ANSWERS = (20, 150)  # tokens of a description as they are released


def make(args: argparse.Namespace) -> Vlm:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
        "image_size": 224, "patch_size": 14, "hidden_act": "quick_gelu",
    }  # fmt: skip
    text = {
        "hidden_size": args.width, "num_hidden_layers": args.layers, "num_attention_heads": args.width // 64,
        "num_key_value_heads": args.width // 64, "intermediate_size": 11 * args.width // 4, "vocab_size": 32000,
    }  # fmt: skip
    net = Vlm(vision, text)
    net.vision.requires_grad_(False)
    return net


def conversations(count: int) -> list[dict[str, Tensor]]:
    """Token ids and labels of conversations whose answers are as long as the released ones."""
    chance = random.Random(0)
    found = []
    for number in range(count):
        answer = chance.randint(*ANSWERS)
        ids = torch.randint(5, 32000, (1 + QUESTION + answer,), generator=torch.Generator().manual_seed(number))
        ids[1] = IMAGE
        labels = ids.clone()
        labels[: 1 + QUESTION] = IGNORED
        found.append({"ids": ids, "labels": labels})
    return found


def plain_loss(net: Vlm, batch: dict[str, Any], pixels: Tensor) -> Tensor:
    """Logits of every position; what is not learned is left out of the loss."""
    features = net.image_features(pixels)
    embedded, mask, labels = net.expand(batch["ids"], batch["mask"], features, batch["labels"])
    logits = net.language.lm_head(net.states(embedded, mask))[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def our_loss(net: Vlm, batch: dict[str, Any], pixels: Tensor) -> Tensor:
    return token_cross_entropy(net(batch["ids"], batch["labels"], batch["mask"], pixels))


def timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def spread(batches: Sequence[list[int]], lengths: Sequence[int], count: int) -> list[list[int]]:
    """`count` batches whose longest texts are spread over all of them."""
    order = sorted(batches, key=lambda batch: max(lengths[index] for index in batch))
    return [order[round((place + 0.5) * len(order) / count)] for place in range(count)]


def reading(net: Vlm, args: argparse.Namespace) -> None:
    """Features of descriptions of 40 tokens: read in one pass, or written token by token."""
    net.eval()
    prompts = [torch.cat([torch.tensor([1, IMAGE]), torch.arange(10, 10 + QUESTION)])] * args.batch
    with torch.inference_mode():
        images = net.image_features(torch.randn(args.batch, 3, 224, 224))

        def write() -> Any:
            return net.write(prompts, images, generators=None, stop=[], longest=40)

        written = write()
        answers = [answer.ids for answer in written]

        def read() -> Any:
            return net.read(prompts, answers, images)

        error = max(float((a - b.states).abs().max()) for a, b in zip(read(), written, strict=True))
        assert error < 1e-3, error
        times = [[timed(write), timed(read)] for _ in range(args.rounds)]
    slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"\ntext features of {args.batch} descriptions of 40 tokens (largest difference {error:.0e})")
    print(f"{'token by token':<56}{slow:>9.3f} s")
    print(f"{'one pass over what is there':<56}{fast:>9.3f} s{slow / fast:>9.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="of the language model; LLaMA-2-13B: 5120")
    parser.add_argument("--layers", type=int, default=4, help="LLaMA-2-13B: 40")
    parser.add_argument("--batch", type=int, default=8, help="official: 16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = make(args)
    data = conversations(2000)
    lengths = [len(one["ids"]) - 1 + net.vision.patches for one in data]
    orders = {
        "plain": list(Bucketed(lengths, args.batch, 0, 1).batches(0)),
        "ours": list(Bucketed(lengths, args.batch, 0, 50).batches(0)),
    }
    print(f"{len(data)} conversations of {min(lengths)} to {max(lengths)} tokens, {args.batch} in a batch")
    for name, batches in orders.items():
        words = {"plain": "as they come", "ours": "like lengths together"}[name]
        print(f"  padding, {words:<24}{waste(lengths, batches):>7.1%}")

    pixels = torch.randn(args.batch, 3, 224, 224)
    losses = {"plain": plain_loss, "ours": our_loss}
    same = collate([data[index] for index in orders["plain"][0]], 0, 2048)
    found = [float(loss(net, same, pixels).detach()) for loss in losses.values()]
    assert abs(found[0] - found[1]) < 1e-4, found
    flops = Flops(net, torch.device("cpu"))
    times: dict[str, list[float]] = {name: [] for name in losses}
    shares = []
    chosen = {name: spread(orders[name], lengths, args.rounds) for name in losses}
    for number in range(args.rounds):
        for name, loss in losses.items():
            batch = collate([data[index] for index in chosen[name][number]], 0, 2048)
            flops.read()
            times[name].append(timed(lambda loss=loss, batch=batch: loss(net, batch, pixels).backward()))
            if name == "ours":
                flops.add(batch["mask"], batch["labels"])
                shares.append(flops.read()["mfu"])
            net.zero_grad()
    slow, fast = (statistics.mean(times[name]) for name in ("plain", "ours"))
    size = sum(p.numel() for p in net.language.parameters())
    print(f"\nforward and backward, language model of {size / 1e6:.0f} M parameters, fp32")
    print(f"{'batches as they come, logits of every position':<56}{slow:>9.3f} s")
    print(f"{'like lengths together, logits where they are learned':<56}{fast:>9.3f} s{slow / fast:>9.2f} x")
    print(f"model FLOP utilization of ours: {statistics.mean(shares):.0%} of what a matrix product reaches here")
    reading(net, args)


if __name__ == "__main__":
    main()
