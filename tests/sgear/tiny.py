"""What the tests of training share: a dataset and settings with which a run takes a second, and a look into a run."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np

from core import config
from projects.sgear.config import Config

VERBS, NOUNS = ("take", "put", "wash"), ("cup", "pan:lid")
ACTIONS = [(verb, noun) for verb in range(3) for noun in range(2)][:5]
WIDTH = 16


def write_dataset(root: Path, *, train: int = 24, val: int = 8, length_s: int = 4) -> None:
    """EK100's layout with RULSTM's tables and one feature database; every action lasts 2 s and follows 2 s of hints.

    The features before an action tell its class.
    """
    names = root / "external" / "epic-kitchens-100-annotations"
    tables = root / "external" / "rulstm" / "RULSTM" / "data" / "ek100"
    folder = root / "DATA" / "external" / "rulstm" / "RULSTM" / "ek100_data_full" / "rgb"
    for path in (names, tables, folder):
        path.mkdir(parents=True)
    for kind, words in (("verb", VERBS), ("noun", NOUNS)):
        rows = "".join(f"{number},{word},,\n" for number, word in enumerate(words))
        (names / f"EPIC_100_{kind}_classes.csv").write_text(f"id,key,instances,category\n{rows}")
    rows = "".join(f"{k},{v},{n},{VERBS[v]} {NOUNS[n]}\n" for k, (v, n) in enumerate(ACTIONS))
    (tables / "actions.csv").write_text(f"id,verb,noun,action\n{rows}")

    rng = np.random.default_rng(0)
    signs = rng.standard_normal((len(ACTIONS), WIDTH)).astype(np.float32)
    with lmdb.open(str(folder), map_size=1 << 26) as database, database.begin(write=True) as transaction:
        for part, video, count in (("training", "P01_01", train), ("validation", "P02_01", val)):
            lines = []
            for number in range(count):
                action = int(rng.integers(len(ACTIONS)))
                verb, noun = ACTIONS[action]
                begin, end = 30 * (length_s * number + 2) + 1, 30 * (length_s * number + 4)
                lines.append(f"{video}_{number},{video},{begin},{end},{verb},{noun},{action}\n")
                for frame in range(end - 30 * length_s + 1, end + 1):
                    value = signs[action] + 0.3 * rng.standard_normal(WIDTH).astype(np.float32)
                    transaction.put(f"{video}_frame_{frame:010d}.jpg".encode(), np.abs(value).tobytes())
            (tables / f"{part}.csv").write_text("".join(lines))


def settings(root: Path, out: Path, *more: str) -> list[str]:
    """The command line of a tiny run on features: 3 batches an epoch, 2 epochs."""
    return [
        f"data.root={root}", f"run.out={out}", "run.device=cpu", "run.log_every=1000", "data.table=rulstm",
        "data.source=features", "data.frames=4", "data.rate=2", "data.tau_a=0.5", "data.tau_o=2",
        "model.input=features", f"model.feature_dim={WIDTH}", "model.width=64", "model.decoder.width=32",
        "model.decoder.layers=1", "model.decoder.heads=2", "model.decoder.positions=16", "model.decoder.dropout=0",
        "model.dropout=0", "loss.semantic=0", "loader.batch_size=8", "loader.workers=0", "eval.batch_size=4",
        "optim.epochs=2", "optim.warmup=0", "optim.lr=0.02", *more,
    ]  # fmt: skip


def configured(root: Path, out: Path, *more: str) -> Config:
    return config.load(Config, None, settings(root, out, *more))
