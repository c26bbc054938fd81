"""Prototypes of actions: language ones from their names, visual ones from a recognition run.

    python -m projects.sgear.make_prototypes language --dataset epic100 --label_file actions.csv [--encoder FOLDER]
    python -m projects.sgear.make_prototypes visual projects/sgear/configs/ek100_vit_recognition.yaml [KEY=VALUE ...]
        [--split train] [--out FOLDER] [--exemplars 20] [--from exemplars.pth ...]

`language` writes encodings_<dataset>.pth and similarities_<dataset>.pth. `visual` runs the weights of the recognition
run (ckpt, or the best of run.out) over a split, stores the embeddings of up to 20 samples of each class in
exemplars_<dataset>_<split>.pth, and their means in visual_<dataset>_<split>.pth; `--from` takes stored ones instead, of
several splits if wanted. All files have the layout of the published code; their origin is kept inside.

A class without exemplars (238 of EK100 never occur in training) gets the mean of its relatives: half of the prototypes
that share its verb, half of those that share its noun; without relatives, the mean of all.
"""

from __future__ import annotations

import argparse
import datetime
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import config, dist, metrics, run
from core.data import Loader
from core.run import Run
from core.step import autocast
from projects.sgear import data, encoders, prototype_files, sentences, weights
from projects.sgear.config import Config
from projects.sgear.data import Benchmark

ENCODER = "all-mpnet-base-v2"


def main(argv: Sequence[str] | None = None) -> tuple[Path, Path]:
    """Make the prototypes that the first argument names; returns the two files."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands = {"language": _language_command, "visual": _visual_command}
    if not args or args[0] not in commands:
        text = f"{(__doc__ or '').strip()}\n"
        asked = {"-h", "--help"} & set(args[:1])
        (sys.stdout if asked else sys.stderr).write(text)
        raise SystemExit(0 if asked else 2)
    try:
        return commands[args[0]](args[1:])
    except ValueError as error:
        sys.exit(f"make_prototypes: {error}")


# ------------------------------------------------------------------------------------------------------------- language


def _language_command(args: Sequence[str]) -> tuple[Path, Path]:
    parser = argparse.ArgumentParser(prog="python -m projects.sgear.make_prototypes language")
    keywords = ", ".join([*sentences.PARSERS, *sentences.ALIASES])
    parser.add_argument("--dataset", required=True, help=f"one of {keywords}")
    parser.add_argument("--label_file", "--label-file", type=Path, required=True, help="actions.csv, or mapping.txt")
    parser.add_argument("--encoder", default=ENCODER, help=f"folder or name; {encoders.WORDS} needs no weights")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the files")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="vectors of length 1; the encoder's own choice without",
    )
    given = parser.parse_args(args)
    files = language(given.dataset, given.label_file, given.out, given.encoder, normalize=given.normalize)
    sys.stdout.write("".join(f"{path}\n" for path in files))
    return files


def language(
    dataset: str, labels: Path, out: Path, encoder: str = ENCODER, *, normalize: bool | None = None
) -> tuple[Path, Path]:
    """Encode the names of a label file; returns the files of encodings (768,) and similarities (1,K) by action id.

    Raises: ValueError for a label file of another form, or an encoder that cannot be had.
    """
    texts = sentences.read(labels, dataset)
    vectors = encoders.encode(list(texts.values()), encoder, normalize=normalize)
    origin = {
        "kind": "language",
        "dataset": sentences.keyword(dataset),
        "labels": labels.name,
        "encoder": encoder,
        "normalized": bool(((vectors.norm(dim=1) - 1).abs() < 1e-4).all()),
        "sentences": list(texts.values()),
        **_circumstances(),
    }
    encodings, similarities = (out / f"{what}_{dataset}.pth" for what in ("encodings", "similarities"))
    cosines = prototype_files.similarities(vectors)
    prototype_files.write(encodings, {key: row.clone() for key, row in zip(texts, vectors, strict=True)}, origin)
    rows = {key: row[None].clone() for key, row in zip(texts, cosines, strict=True)}
    prototype_files.write(similarities, rows, {**origin, "kind": "language similarities"})
    return encodings, similarities


# --------------------------------------------------------------------------------------------------------------- visual


def _visual_command(args: Sequence[str]) -> tuple[Path, Path]:
    parser = argparse.ArgumentParser(prog="python -m projects.sgear.make_prototypes visual", allow_abbrev=False)
    parser.add_argument("--split", default="train", help="part of the dataset the exemplars are taken from")
    parser.add_argument("--out", type=Path, help="folder of the files; the run directory without")
    parser.add_argument("--exemplars", type=int, default=20, help="samples of each class, the first in file order")
    parser.add_argument("--from", dest="stored", nargs="+", default=[], help="stored exemplars: nothing is run")
    given, rest = parser.parse_known_args(args)
    cfg = config.parse(Config, rest)
    with run.start(cfg, cfg.run, visit=True) as job:
        benchmark = data.load(cfg.data)
        out = given.out or job.out
        name = f"{cfg.data.dataset}_{given.split}"
        stored = [Path(path) for path in given.stored]
        if not stored:
            stored = [out / f"exemplars_{name}.pth"]
            found = embed(cfg, job, benchmark, given.split, given.exemplars)
            if found is None:
                raise ValueError("the run was asked to stop before all exemplars were there; nothing was written")
            if dist.is_main():
                origin = {"kind": "exemplars", "split": given.split, **_run_origin(cfg, job)}
                prototype_files.write(stored[0], found, origin)
            dist.barrier()
        path = out / f"visual_{name}.pth"
        table, without = average(stored, benchmark)
        if dist.is_main():
            origin = {"kind": "visual", "exemplars": [str(each) for each in stored], "without_exemplars": without}
            prototype_files.write(path, table, {**origin, **_run_origin(cfg, job)})
        job.log.info(
            f"{path}: {len(table)} prototypes of width {table.shape[1]}; {len(without)} classes without exemplars got "
            "the mean of their relatives"
        )
        return stored[0], path


@torch.inference_mode()
def embed(cfg: Config, job: Run, benchmark: Benchmark, split: str, limit: int) -> dict[int, list[list[float]]] | None:
    """The embeddings (D numbers) of the first `limit` samples of each class of a split; only these are read.

    None when the run was asked to stop.
    """
    dataset = benchmark.dataset(split)
    chosen = first_of_each(np.asarray(dataset.clips.segments.action), limit)
    if not len(chosen):
        raise ValueError(f"no sample of {split} has a label; exemplars need labeled ones")
    net, _ = weights.load(cfg, job, benchmark)
    loader = Loader(
        Chosen(dataset, chosen),
        cfg.loader.model_copy(update={"batch_size": cfg.eval.batch_size}),
        train=False,
        device=job.device,
        transform=data.transform(cfg, crops=cfg.eval.crops, flips=cfg.eval.flips),
    )
    collector = metrics.Collector()
    for batch in job.log.progress(loader, f"exemplars of {split}"):
        with autocast(cfg.precision, job.device):
            outputs = net(batch[cfg.model.input])
        collector.add(
            batch["id"], index=batch["index"].cpu(), label=batch["label"].cpu(), vector=outputs.future.float()
        )
        if job.stop_requested:
            break
    if dist.any_true(job.stop_requested):
        return None
    merged = collector.merge()
    found: dict[int, list[list[float]]] = {action: [] for action in range(len(benchmark.actions))}
    for row in np.argsort(merged["index"]):
        found[int(merged["label"][row])].append(np.asarray(merged["vector"][row]).tolist())
    return found


def first_of_each(labels: np.ndarray[Any, Any], limit: int) -> list[int]:
    """Places of the first `limit` entries of every label, ascending; unlabeled entries (-1) are left out."""
    counts: dict[int, int] = {}
    chosen = []
    for place, label in enumerate(labels.tolist()):
        if label >= 0 and counts.get(label, 0) < limit:
            counts[label] = counts.get(label, 0) + 1
            chosen.append(place)
    return chosen


class Chosen:
    """Some samples of a dataset."""

    def __init__(self, dataset: Any, places: Sequence[int]) -> None:
        self.dataset, self.places = dataset, list(places)

    def __len__(self) -> int:
        return len(self.places)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """The sample at a chosen place."""
        sample: dict[str, Any] = self.dataset.sample(self.places[index], rng)
        return sample


def average(stored: Sequence[Path], benchmark: Benchmark) -> tuple[Tensor, list[int]]:
    """The mean exemplar of each class (K,D), and the classes that had none and got the mean of their relatives.

    Raises: ValueError for files of other classes, or without a single exemplar.
    """
    count = len(benchmark.actions)
    tables: dict[int, list[Tensor]] = {action: [] for action in range(count)}
    for path in stored:
        for action, rows in prototype_files.read_exemplars(path).items():
            if not 0 <= action < count:
                raise ValueError(f"{path}: has action {action}, the dataset has {count}; choose the dataset it is of")
            tables[action] += [rows] if len(rows) else []
    means = {action: torch.cat(rows).mean(0) for action, rows in tables.items() if rows}
    if not means:
        raise ValueError(f"{', '.join(map(str, stored))}: no class has an exemplar")
    without = [action for action in range(count) if action not in means]
    return fill(means, count, {"verb": benchmark.verb_of, "noun": benchmark.noun_of}), without


def fill(means: Mapping[int, Tensor], count: int, parents: Mapping[str, Tensor]) -> Tensor:
    """Prototypes (K,D) of all classes, where those not among `means` get the mean of their relatives, see above."""
    known = torch.tensor(sorted(means))
    rows = torch.stack([means[int(action)] for action in known])
    table = rows.mean(0).expand(count, -1).clone()
    table[known] = rows
    for action in sorted(set(range(count)) - set(means)):
        related = []
        for ids in parents.values():
            if len(ids) == count and bool((akin := ids[known] == ids[action]).any()):
                related.append(rows[akin].mean(0))
        if related:
            table[action] = torch.stack(related).mean(0)
    return table


def _run_origin(cfg: Config, job: Run) -> dict[str, Any]:
    model = {"weights": cfg.ckpt or str(job.out), "dataset": cfg.data.dataset, "tau_a": cfg.data.tau_a}
    return {**model, "frames": cfg.data.frames, "rate": cfg.data.rate, **_circumstances()}


def _circumstances() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"made": now, "torch": torch.__version__, "program": "projects.sgear.make_prototypes"}


if __name__ == "__main__":
    main()
