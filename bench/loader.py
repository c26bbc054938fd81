"""Loading: the share of a step spent waiting for data, and the memory of 20,000 reads, beside torch's plain DataLoader.

python -m bench.loader [--reads 20000] [--epochs 4] [--rounds 3] [--workers 2]

Waiting: short epochs over real files. Each sample decodes 8 of 48 frames, each step trains a small 3D network, and an
evaluation after each epoch takes a while without asking for training data. Both loaders get the same dataset, batch
size and workers, and their rounds alternate. Memory: summed over the main process and its workers, what is resident
(RSS) and what each has written itself (private), which also shows pages copied after a fork; the growth is the slope of
a line through the samples taken after a tenth of the reads.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from core import demo, video
from core.data import Loader, LoaderConfig

BATCH = 4
FILES = 12


class Clips:
    """Frames of video files, many samples of few files."""

    def __init__(self, paths: list[Path], count: int) -> None:
        self.items = [{"id": str(i), "path": str(paths[i % len(paths)]), "label": i % 4} for i in range(count)]

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        item = self.items[index]
        start = rng.randrange(32)
        frames = video.read(item["path"], range(start, start + 16, 2))
        return {"id": item["id"], "video": frames, "label": item["label"]}


class Noise(Clips):
    """The same annotations without files, so that what grows is the loader's."""

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        item = self.items[index]
        frames = torch.full((8, 64, 64, 3), rng.randrange(256), dtype=torch.uint8)
        return {"id": item["id"], "video": frames, "label": item["label"]}


class Plain(torch.utils.data.Dataset[dict[str, Any]]):
    """The same samples for torch's DataLoader."""

    def __init__(self, dataset: Clips) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset.sample(index, random.Random(index))


def suite(dataset: Clips, epochs: int, workers: int) -> Iterator[Iterable[dict[str, Any]]]:
    loader = Loader(dataset, LoaderConfig(batch_size=BATCH, workers=workers), train=True)
    for _ in loader.epochs(epochs):
        yield loader
    loader.close()


def plain(dataset: Clips, epochs: int, workers: int) -> Iterator[Iterable[dict[str, Any]]]:
    loader = torch.utils.data.DataLoader(
        Plain(dataset), batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    for _ in range(epochs):
        yield loader


LOADERS = {"core.data": suite, "DataLoader": plain}


def waiting(name: str, dataset: Clips, epochs: int, workers: int) -> tuple[float, float]:
    """Share of the training time spent waiting after the first epoch, and the mean wait for an epoch's first batch."""
    net = torch.nn.Sequential(
        torch.nn.Conv3d(3, 8, 3, stride=(1, 2, 2), padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv3d(8, 16, 3, stride=2, padding=1),
        torch.nn.AdaptiveAvgPool3d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 4),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    waited = worked = 0.0
    firsts = []
    for epoch, batches in enumerate(LOADERS[name](dataset, epochs, workers)):
        since, first = time.perf_counter(), None
        for batch in batches:
            now = time.perf_counter()
            first = now - since if first is None else first
            clips = batch["video"].permute(0, 4, 1, 2, 3).float().div_(255)
            torch.nn.functional.cross_entropy(net(clips), batch["label"]).backward()
            optimizer.step()
            optimizer.zero_grad()
            done = time.perf_counter()
            if epoch > 0:  # the workers start in the first one
                waited += now - since
                worked += done - now
            since = done
        if epoch > 0 and first is not None:
            firsts.append(first)
        time.sleep(0.5)  # an evaluation
    return waited / (waited + worked), statistics.mean(firsts)


def memory(name: str, dataset: Clips, workers: int) -> tuple[float, float]:
    """Growth in MB per 1,000 reads, of RSS and of private memory."""
    every = len(dataset) // 40
    reads, rows = 0, []
    for batches in LOADERS[name](dataset, 1, workers):
        for batch in batches:
            reads += len(batch["id"])
            if reads % every < BATCH and reads > len(dataset) // 10:
                rows.append((reads, *used()))
    table = np.array(rows)
    slopes = np.polyfit(table[:, 0] / 1000, table[:, 1:], 1)[0]
    return float(slopes[0]), float(slopes[1])


def used() -> tuple[float, float]:
    main = psutil.Process()
    rss = private = 0
    for process in (main, *main.children(recursive=True)):
        fields = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        sizes = {line.split()[0]: int(line.split()[1]) for line in fields[1:]}
        rss += sizes["Rss:"]
        private += sizes["Private_Dirty:"]
    return rss / 1024, private / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.mp4" for i in range(FILES)]
        for i, path in enumerate(paths):
            demo.video(path, demo.MOTIONS[i % len(demo.MOTIONS)], random.Random(i), frames=48, size=(96, 128))
        dataset = Clips(paths, 120)
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in LOADERS}
        for _ in range(args.rounds):
            for name, rows in results.items():
                rows.append(waiting(name, dataset, args.epochs, args.workers))
    print(f"{'loader':<12} {'waiting':>9} {'epoch start':>12}   median of {args.rounds} rounds, {args.workers} workers")
    for name, rows in results.items():
        share, first = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:<12} {share:>8.1%} {first * 1000:>9.1f} ms")
    print(f"\n{'loader':<12} {'RSS':>9} {'private':>9}   MB per 1,000 of {args.reads} reads")
    for name in LOADERS:
        rss, private = memory(name, Noise([Path("none")], args.reads), args.workers)
        print(f"{name:<12} {rss:>9.3f} {private:>9.3f}", flush=True)


if __name__ == "__main__":
    main()
