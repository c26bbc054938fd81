"""What comes next? The next actions after any video, without annotations; and, with a recognition model, what was done.

    python -m projects.lta_memvit.predict runs/lta_memvit/run/config.yaml predict.input=my.mp4 [ckpt=FILE]
        [predict.recognizer=FILE] [predict.at_s=60]

The video is cut into segments of `predict.segment_s`, one every `predict.hop_s`. A forecaster looks at the last N of
them; with a memory it has seen the earlier ones too, one after the other, in memory that does not grow. A recognition
model alone forecasts that the last action repeats. Writes predictions.json and predict.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import simplejson
import torch
from torch import Tensor

from core import clips, config, run, video
from core.checkpoint import write_atomic
from core.data import Loader
from core.run import Run
from core.step import autocast
from projects.lta_memvit import data, model, report, weights, windows
from projects.lta_memvit.config import Config
from projects.lta_memvit.ego4d import Action, Taxonomy
from projects.lta_memvit.model import Network
from projects.lta_memvit.sequences import draw

REPEATED = "a recognition model forecasts that the last action repeats"


class Slides:
    """Segments of one video, oldest first. Samples: id, video uint8 (1, T, H, W, 3), stream (path, position)."""

    def __init__(self, path: Path, cfg: Config, *, several: bool) -> None:
        self.path, self.clip, self.several = path, cfg.clip, several
        info = video.probe(path)
        self.at_s = min(cfg.predict.at_s, info.duration_s) if cfg.predict.at_s > 0 else info.duration_s
        segment_s = min(cfg.predict.segment_s, self.at_s)
        count = int((self.at_s - segment_s) / cfg.predict.hop_s + clips.EPSILON) + 1
        starts = [self.at_s - segment_s - k * cfg.predict.hop_s for k in reversed(range(count))]  # the last one ends it
        self.spans = [(max(start, 0.0), max(start, 0.0) + segment_s) for start in starts]

    def __len__(self) -> int:
        return len(self.spans)

    def sample(self, index: int, rng: Any) -> dict[str, Any]:
        """The middle of a segment."""
        span = windows.seconds(Action("", index, *self.spans[index], 0, 0), self.clip.seconds)
        pixels, _ = data.read(self.path, [span], self.clip.frames, several=self.several, rotate=True)
        return {"id": f"{index:06d}", "video": pixels, "stream": (str(self.path), index)}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Answer for every video of `predict.input`; a file that cannot be read is named and left out."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        nets = load(cfg, job)
        answers = []
        for path in job.log.progress(find(cfg.predict.input), "predict"):
            try:
                answers.append(predict(*nets, path, cfg, job))
            except video.VideoError as error:
                job.log.warning(f"left out: {error}")
                continue
            job.log.info(words(answers[-1]))
            if job.stop_requested:
                break
        write_atomic(job.out / "predictions.json", simplejson.dumps(answers, indent=2, ignore_nan=True) + "\n")
        report.write_predictions(job.out / "predict.html", answers)
        job.log.info(f"{len(answers)} videos answered: {job.out / 'predictions.json'}, {job.out / 'predict.html'}")
        return answers


def find(path: Path) -> list[Path]:
    """The video itself, or all videos below a folder.

    Raises: ValueError when there is none.
    """
    if path.is_file():
        return [path]
    found = video.videos_in(path) if path.is_dir() else []
    if not found:
        raise ValueError(f"predict.input={path} is neither a video nor a folder with videos")
    return found


def load(cfg: Config, job: Run) -> tuple[Network | None, Network | None, Taxonomy]:
    """The forecaster and the recognition model, of which one may be missing, and the names of their classes.

    Raises: ValueError when they know different classes.
    """
    if cfg.model.backbone == "none":
        raise ValueError("model.backbone=none knows precomputed features only; predict needs a model that sees video")
    net, names = weights.load(cfg, job)
    if cfg.task == "recognition":
        return None, net, names
    if not cfg.predict.recognizer:
        return net, None, names
    other = cfg.model_copy(update={"task": "recognition", "ckpt": cfg.predict.recognizer})
    recognizer, known = weights.load(other, job, names)
    if known != names:
        raise ValueError(f"{cfg.predict.recognizer} knows other classes ({known}) than the forecaster ({names})")
    return net, recognizer, names


@torch.inference_mode()
def predict(
    forecaster: Network | None, recognizer: Network | None, names: Taxonomy, path: Path, cfg: Config, job: Run
) -> dict[str, Any]:
    """What was seen in a video up to `predict.at_s`, and the next actions, with class names and shares.

    Raises: VideoError when the video cannot be read.
    """
    slides = Slides(path, cfg, several=cfg.data.inputs > 1)
    seen = recognize(recognizer, path, names, cfg, job) if recognizer is not None else []
    answer: dict[str, Any] = {
        "video": str(path), "duration_s": video.probe(path).duration_s, "at_s": slides.at_s, "seen": seen, "note": "",
    }  # fmt: skip
    hop_s, last = cfg.predict.hop_s, slides.at_s
    spans = [(last + k * hop_s, last + (k + 1) * hop_s) for k in range(cfg.data.future)]
    if forecaster is None:
        repeated = [{key: seen[-1][key] for key in ("verb", "noun")}] * len(spans)
        return answer | {"next": _timed(spans, repeated), "futures": [], "note": REPEATED}
    verb, noun = (head.float().cpu() for head in forecast(forecaster, slides, cfg, job))
    ranked = [
        {"verb": top(v, names.verbs, cfg.predict.topk), "noun": top(n, names.nouns, cfg.predict.topk)}
        for v, n in zip(verb[0].softmax(-1), noun[0].softmax(-1), strict=True)
    ]
    futures = draw(verb, noun, [path.name], cfg.eval)
    told = [
        {"verb": [names.verbs[k] for k in verbs], "noun": [names.nouns[k] for k in nouns]}
        for verbs, nouns in zip(futures.verb[0].tolist(), futures.noun[0].tolist(), strict=True)
    ]
    return answer | {"next": _timed(spans, ranked), "futures": told}


def recognize(net: Network, path: Path, names: Taxonomy, cfg: Config, job: Run) -> list[dict[str, Any]]:
    """Verb and noun of every segment, likeliest first."""
    slides = Slides(path, cfg, several=False)
    found: dict[int, dict[str, Any]] = {}
    net.forget()
    for batch in _batches(slides, cfg, job, alone=remembers(net, cfg)):
        with autocast(cfg.precision, job.device):
            verb, noun = net(batch["video"][:, 0], streams=model.streams(batch, cfg.memory))
        for name, v, n in zip(batch["id"], verb.float().softmax(-1).cpu(), noun.float().softmax(-1).cpu(), strict=True):
            ranked = {"verb": top(v, names.verbs, cfg.predict.topk), "noun": top(n, names.nouns, cfg.predict.topk)}
            found[int(name)] = ranked
    if not found:
        raise video.VideoError(path, "no segment of it can be read")
    order = sorted(found)
    return _timed([slides.spans[k] for k in order], [found[k] for k in order])


def forecast(net: Network, slides: Slides, cfg: Config, job: Run) -> tuple[Tensor, Tensor]:
    """Logits (1, Z, V) and (1, Z, K) after the last segment.

    With a memory every segment is encoded in turn and only the last N features are kept; without one the last N
    segments are all that is read. A video with fewer repeats its first one.
    """
    count = cfg.data.inputs
    net.forget()
    if not remembers(net, cfg):
        places = [max(k, 0) for k in range(len(slides) - count, len(slides))]
        window = torch.cat([slides.sample(k, None)["video"] for k in places])
        video_in = data.pipeline(cfg.clip)(window[None].to(job.device))
        with autocast(cfg.precision, job.device):
            outputs = net(video_in, streams=None)
        return outputs.verb, outputs.noun
    recent: list[Tensor] = []
    for batch in _batches(slides, cfg, job, alone=True):
        with autocast(cfg.precision, job.device):
            recent = [*recent, net.encode(batch["video"], streams=model.streams(batch, cfg.memory))][-count:]
    if not recent:
        raise video.VideoError(slides.path, "no segment of it can be read")
    recent = [recent[0]] * (count - len(recent)) + recent
    with autocast(cfg.precision, job.device):
        outputs = net(features=torch.cat(recent, 1))
    return outputs.verb, outputs.noun


def remembers(net: Network, cfg: Config) -> bool:
    """Whether what a segment says depends on earlier ones, so that each has to wait for the one before."""
    return net.memory is not None and cfg.memory.mode != "off"


def _batches(slides: Slides, cfg: Config, job: Run, *, alone: bool) -> Loader:
    """The segments in order, on the device; one at a time for a network that remembers."""
    settings = cfg.loader.model_copy(update={"batch_size": 1 if alone else cfg.eval.batch_size})
    return Loader(slides, settings, train=False, device=job.device, transform=data.transform(cfg.clip))


def _timed(spans: Sequence[tuple[float, float]], entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"start_s": round(start, 3), "end_s": round(end, 3), **entry}
        for (start, end), entry in zip(spans, entries, strict=True)
    ]


def top(shares: Tensor, classes: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The likeliest classes, likeliest first; of equal ones the first."""
    best = shares.sort(descending=True, stable=True).indices[:count].tolist()
    return [{"class": classes[k], "share": round(float(shares[k]), 6)} for k in best]


def words(answer: dict[str, Any]) -> str:
    """A prediction as lines of text."""
    lines = [f"{answer['video']}, seen until {answer['at_s']:.1f} s{': ' + answer['note'] if answer['note'] else ''}"]
    for number, entry in enumerate(answer["next"], 1):
        (verb, *_), (noun, *_) = entry["verb"], entry["noun"]
        lines.append(f"{number:>4}. {verb['class']} ({verb['share']:.0%})  {noun['class']} ({noun['share']:.0%})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
