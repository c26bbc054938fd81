"""What happens when? Detections for videos without annotations, from mp4 to JSON, subtitles and a page with a player.

    python -m projects.actionformer.predict runs/actionformer/own/config.yaml predict.input=my.mp4 [ckpt=FILE]
    python -m projects.actionformer.predict CONFIG.yaml ckpt=FILE predict.input=features/video.npy
    python -m projects.actionformer.predict CONFIG.yaml ckpt=FILE predict.input=NAME     # its files in data.features

The input is a video or a folder of videos (features are made as `extract` says), a feature file or a folder of them, or
the name of a video that has its features in all folders of data.features. Writes predictions.json and predict.html into
the run directory, and subtitles there under subtitles/<name>.srt and .vtt. With predict.block=N a video of any length
is answered in the memory of N features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from core import config, run
from core.data import SampleError
from core.run import Run
from core.video import VideoError
from projects.actionformer import data, extract, extractors, report, results, subtitles, weights
from projects.actionformer.blocks import detect
from projects.actionformer.config import Config
from projects.actionformer.eval import finish
from projects.actionformer.features import Recorded, Source, Sources
from projects.actionformer.geometry import Geometry

FEATURES = (".npy", ".npz", ".pt", ".pth")


class Input(NamedTuple):
    """The features of one video to answer: `read(start, stop)` gives (C,t) of its `length`."""

    name: str
    read: Callable[[int, int], Tensor]
    length: int
    geometry: Geometry
    duration_s: float
    video: Path | None


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Answer every input; one that cannot be read is named and left out. Returns what predictions.json holds."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        return predict(cfg, job)


def predict(cfg: Config, job: Run) -> dict[str, list[dict[str, Any]]]:
    """The detections of all inputs, by name, best first; written as JSON, subtitles and page.

    Raises: ValueError when there is no input, or none that can be read.
    """
    net, classes = weights.load(cfg, job, _classes(cfg))
    table, shown = {}, []
    for source in job.log.progress(inputs(cfg, job), "predict"):
        answer = detect(
            net, source.read, source.length, source.geometry, source.duration_s, cfg.postprocess,
            size=cfg.predict.block, precision=cfg.precision, device=job.device,
        )  # fmt: skip
        found = finish({source.name: answer.found}, cfg)[source.name]
        table[source.name] = found
        best = found.take(found.scores >= cfg.predict.min_score)
        subtitles.write(job.out / "subtitles" / source.name, best, classes, source.duration_s)
        shown.append(report.Shown(source.name, best, answer, source.duration_s, source.video))
        job.log.info(f"{source.name}: {len(found.scores)} detections, {len(best.scores)} of them shown")
        if job.stop_requested:
            break
    if not table:
        raise ValueError(f"predict.input={cfg.predict.input}: none of the inputs could be read; the warnings say why")
    results.write_json(job.out / "predictions.json", table, classes)
    report.write_predictions(job.out / "predict.html", shown, classes)
    job.log.info(f"{len(table)} videos answered: {job.out / 'predictions.json'}, {job.out / 'predict.html'}")
    return {name: results.rows(found, classes) for name, found in table.items()}


def _classes(cfg: Config) -> tuple[str, ...]:
    """Class names of the annotations where they are at hand, for weights that do not know their own."""
    return data.load(cfg.data).classes if cfg.data.annotations.is_file() else ()


def inputs(cfg: Config, job: Run) -> Iterator[Input]:
    """The inputs that can be read, one after the other; the others are warnings.

    Raises: ValueError when predict.input is nothing of the kind.
    """
    path = cfg.predict.input
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in FEATURES)
        try:
            videos = [] if files else list(extract.find(path).values())
        except ValueError:
            raise ValueError(f"predict.input={path}: a folder without videos and without feature files") from None
    elif path.is_file():
        files, videos = ([path], []) if path.suffix.lower() in FEATURES else ([], [path])
    else:
        yield _known(cfg)
        return
    extractor = extractors.load(cfg.extract, job.device) if videos else None
    for file in [*files, *videos]:
        try:
            if extractor is None:
                yield _of_file(file, cfg)
                continue
            rows, plan, info = extract.features(
                file, extractor, cfg.extract, device=job.device, precision=cfg.precision
            )
            yield _input(file.stem, torch.from_numpy(rows), plan.geometry, info.duration_s, file, cfg)
        except (VideoError, SampleError) as error:
            job.log.warning(f"left out: {error}")


def _of_file(file: Path, cfg: Config) -> Input:
    """A feature file, its geometry as recorded beside it, else as the configuration says."""
    source = Source(file.parent, cfg.data.prefix if file.stem.startswith(cfg.data.prefix) else "", file.suffix)
    name = file.stem.removeprefix(source.prefix)
    recorded = source.recorded(name)
    return _of_source(name, source, *_geometry(cfg, recorded, file), cfg)


def _known(cfg: Config) -> Input:
    """A video by its name in data.features."""
    name, sources = str(cfg.predict.input), Sources(
        cfg.data.features, cfg.data.prefix, cfg.data.suffix, cfg.data.input_dim
    )  # fmt: skip
    missing = sources.missing(name)
    if missing is not None:
        raise ValueError(f"predict.input={name}: no such file or folder, and no features of that name ({missing})")
    return _of_source(name, sources, *_geometry(cfg, sources.parts[0].recorded(name), missing or Path(name)), cfg)


def _of_source(name: str, source: Source | Sources, geometry: Geometry, duration_s: float | None, cfg: Config) -> Input:
    length = source.length(name) if isinstance(source, Sources) else source.shape(name)[0]

    def read(start: int, stop: int) -> Tensor:
        return torch.from_numpy(source.read(name, start, stop)).t()

    seconds = float(geometry.seconds(length)) if duration_s is None else duration_s
    return _laid(Input(name, read, length, geometry, seconds, cfg.predict.video), cfg)


def _input(name: str, rows: Tensor, geometry: Geometry, duration_s: float, video: Path | None, cfg: Config) -> Input:
    """Features (T,C) at hand."""
    return _laid(Input(name, lambda a, b: rows[a:b].t(), len(rows), geometry, duration_s, video), cfg)


def _laid(given: Input, cfg: Config) -> Input:
    """The features as the model was trained on them: resampled to one length, or every so many of them."""
    step, wanted = cfg.data.downsample, cfg.data.max_length
    if cfg.data.resample:
        whole = F.interpolate(given.read(0, given.length)[None], size=wanted, mode="linear", align_corners=False)[0]
        geometry = given.geometry.stretched(given.length, wanted)
        return given._replace(read=lambda a, b: whole[:, a:b], length=wanted, geometry=geometry)
    if step == 1:
        return given
    return given._replace(
        read=lambda a, b: given.read(a * step, min(b * step, given.length))[:, ::step].contiguous(),
        length=-(-given.length // step),
        geometry=given.geometry.every(step),
    )


def _geometry(cfg: Config, recorded: Recorded | None, file: Path) -> tuple[Geometry, float | None]:
    """Geometry and duration of a feature file.

    Raises: ValueError when neither a record beside the file nor the configuration says them.
    """
    if recorded is not None:
        return Geometry(recorded.fps, recorded.stride, recorded.window), recorded.duration
    if cfg.data.fps is None or cfg.data.stride_frames is None:
        raise ValueError(
            f"{file}: nothing says how its features lie in time; set data.fps, data.stride_frames and "
            "data.window_frames to those of the extraction"
        )
    return Geometry(cfg.data.fps, cfg.data.stride_frames, cfg.data.window_frames), None


if __name__ == "__main__":
    main()
