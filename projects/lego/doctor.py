"""Is everything there, and does it fit? Machine, dataset, features and weights, before days are spent.

    python -m projects.lego.doctor projects/lego/configs/ego4d_ldm.yaml data.root=data/lego

ends with 0 when training can start.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from core import config
from core.data import SampleError
from core.findings import Finding, machine, tell
from projects.lego import data
from projects.lego.config import Config
from projects.lego.data import RELEASED, Record
from projects.lego.metrics.places import SOURCES
from projects.lego.model import layouts

OPENED = 50  # frames and feature files that are opened; all are looked for


def main(argv: Sequence[str] | None = None) -> int:
    """Print every finding; returns 1 when one of them is an error."""
    return tell(examine(config.parse(Config, argv)))


def examine(cfg: Config) -> Iterator[Finding]:
    """Everything worth saying about a configuration on this machine, as it is found."""
    yield machine(cfg.run.out, room_gib=30 if cfg.model.width >= 320 else 1)
    for split in ("train", "val"):
        try:
            records = data.load(cfg.data, split)
        except ValueError as error:
            yield Finding("error", str(error), "python -m projects.lego.download lists where the dataset is published")
            continue
        yield from counts(records, split, cfg)
        yield from prompts(records, split, cfg)
        yield from frames(records, split, cfg)
        yield from features(records, split, cfg)
    yield from shapes(cfg)
    yield from weights(cfg)
    yield from metrics(cfg)


def counts(records: Sequence[Record], split: str, cfg: Config) -> Iterator[Finding]:
    """How many pairs there are, against the release."""
    for dataset in cfg.data.datasets:
        found = sum(record.dataset == dataset for record in records)
        published = RELEASED[dataset].counts[split]
        text = f"{dataset} {split}: {found} pairs"
        if found in (published, cfg.data.limit):
            yield Finding("ok", text)
        else:
            yield Finding("warning", f"{text}; the release has {published}", "fine for data of your own")


def prompts(records: Sequence[Record], split: str, cfg: Config) -> Iterator[Finding]:
    """Pairs without the text that conditions them."""
    absent = [record for record in records if not isinstance(record.fields.get(cfg.data.prompt), str)]
    if absent:
        first = f"{absent[0].clip}/{absent[0].action}"
        yield Finding(
            "error",
            f"{split}: {len(absent)} pairs have no text {cfg.data.prompt!r}, such as {first}",
            f"let the VLLM write it (extract.prompt={cfg.data.prompt}), or use data.prompt=action",
        )


def frames(records: Sequence[Record], split: str, cfg: Config) -> Iterator[Finding]:
    """Frames that are missing or cannot be read; a source frame that does not come first in its folder."""
    absent = data.missing(cfg.data, records)
    if absent:
        yield Finding(
            "error", f"{split}: {len(absent)} frames are missing, such as {absent[0]}", "unpack EgoGen.zip there"
        )
        return
    sizes: set[tuple[int, int]] = set()
    for record in some(records):
        for path in (data.source_path(cfg.data.root, record), data.target_path(cfg.data.root, record)):
            try:
                sizes.add(data.read_image(path).size)
            except SampleError as error:
                yield Finding("error", str(error), "unpack the archive again")
                return
        if record.source >= record.target:
            yield Finding("warning", f"{record.source} does not come before {record.target}", "are they exchanged?")
            return
    listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:5])
    yield Finding("ok", f"{split}: all frames are there, of {listed}" + (" and others" if len(sizes) > 5 else ""))


def features(records: Sequence[Record], split: str, cfg: Config) -> Iterator[Finding]:
    """Features of the language model that are missing, or of another width."""
    kinds = data.wanted_features(cfg.data, cfg.model)
    for kind in kinds:
        paths = [data.feature_path(cfg.data.root, record, kind, cfg.data.vllm) for record in records]
        absent = [path for path in paths if not path.is_file()]
        if absent:
            yield Finding(
                "error",
                f"{split}: {len(absent)} of {len(paths)} files of {kind} features are missing, such as {absent[0]}",
                "unpack the released ones, or compute them: python -m projects.lego.extract (about 2.6 MB a frame); "
                "image features can be made on the fly (data.image_features=frames)",
            )
            continue
        wanted = cfg.model.feature_width
        for record in some(records):
            path = data.feature_path(cfg.data.root, record, kind, cfg.data.vllm)
            try:
                width = data.read_features(path, kind).shape[-1]
            except SampleError as error:
                yield Finding("error", str(error), "compute it again: remove the file and run extract")
                break
            if width != wanted and not (kind == "image" and cfg.data.image_features == "patches"):
                yield Finding("error", f"{path} has width {width}, the model {wanted}", f"model.feature_width={width}")
                break
        else:
            yield Finding("ok", f"{split}: all {kind} features are there")


def shapes(cfg: Config) -> Iterator[Finding]:
    """Whether generated frames can get the shape of their videos."""
    for dataset in cfg.data.datasets:
        if not data.original_sizes(cfg.data.root, dataset):
            yield Finding(
                "warning",
                f"{dataset}_metadata.json is missing: generated frames take the shape of their source frame",
                "the published metrics resize them to 256 lines and the video's own shape",
            )


def weights(cfg: Config) -> Iterator[Finding]:
    """What the weights to start from hold."""
    if not cfg.model.init:
        yield Finding(
            "warning", "model.init is empty: the UNet would start from nothing", "Stable Diffusion 1.5 it was"
        )
        return
    try:
        yield Finding("ok", str(layouts.read(cfg.model.init)))
    except ValueError as error:
        yield Finding("error", str(error))


def metrics(cfg: Config) -> Iterator[Finding]:
    """Which networks of the metrics are there."""
    absent = [name for name in SOURCES if not (cfg.eval.weights / name).exists()]
    if absent:
        yield Finding(
            "warning",
            f"{cfg.eval.weights} lacks {len(absent)} of {len(SOURCES)} networks of the metrics: {', '.join(absent)}",
            "their scores are left out; python -m projects.lego.download lists where they are",
        )
    else:
        yield Finding("ok", "all networks of the metrics are there")


def some(records: Sequence[Record]) -> list[Record]:
    """A few records, the same at every call."""
    return random.Random(0).sample(list(records), min(OPENED, len(records)))


if __name__ == "__main__":
    raise SystemExit(main())
