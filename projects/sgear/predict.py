"""What comes next in this video? The likeliest next actions at every second, for a file of any length or a folder.

    python -m projects.sgear.predict runs/sgear/ek100_SGEAR_vit/config.yaml predict.input=my.mp4 [ckpt=FILE]

writes predictions.json and predict.html, in which the player and the time line move together. An answer at time t has
seen nothing from t on, and is about an action that starts `data.tau_a` seconds later; `predict.tau_a=[0.5,2,3]` asks
for other times as well: later ones by decoding further steps, nearer ones from what was seen earlier. Every frame is
decoded and encoded once. A model on features answers for the videos of its database: `predict.input` is then a video
whose name is there, or just that name.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejson
import torch
from torch import Tensor

from core import config, run, video
from core.checkpoint import write_atomic
from core.data import Loader, SampleError
from core.run import Run
from core.step import autocast
from projects.sgear import clips, data, frames, layout, report, weights
from projects.sgear.clips import Choice, Rule
from projects.sgear.config import Config, DataConfig
from projects.sgear.features import Features
from projects.sgear.model import Sgear

CURVES = 8  # actions whose share is drawn over time
EXACT_S = 1e-6  # anticipation times nearer than this to a whole step are one

Steps = tuple[Tensor, Tensor]
"""Step features (1,T,D) of a window, and those that choose its prototypes."""


class Moments:
    """When a video is asked about, and what may be seen then.

    Raises: VideoError for a video that cannot be read; ValueError for one that is not in the feature database.
    """

    def __init__(self, path: Path, cfg: DataConfig, hop_s: float) -> None:
        self.path, self.cfg = path, cfg
        self.rule = Rule(cfg.frames, cfg.rate, "last_clip" if cfg.strategy == "random_clip" else cfg.strategy)
        self.tau_o = cfg.tau_o_eval or cfg.tau_o
        self.features = Features(layout.resolve(cfg).features) if cfg.source == "features" else None
        if self.features is not None:
            self.fps = clips.FEATURE_FPS
            self.duration_s = self.features.length(path.stem) / self.fps
        else:
            self.clock = frames.clock(path, cfg.fps)
            self.fps = self.clock.fps
            self.duration_s = float(self.clock.times_s[-1]) + 1 / self.fps
        count = int((self.duration_s + 1e-6) / hop_s)
        self.times_s = [hop_s * (k + 1) for k in range(count)] or [self.duration_s]

    def choose(self, end_s: float) -> Choice:
        """The frames, or features, of the clip that ends there. Raises: ValueError when there is none."""
        where = clips.span(end_s - self.tau_o, end_s, self.fps, self.rule, random.Random(0))
        if self.features is not None:
            return (clips.rulstm_frames if self.cfg.exact_rulstm else clips.feature_frames)(where, self.rule)
        return clips.video_frames(self.clock.times_s, where, self.rule)


class Question(NamedTuple):
    """What starts `tau_a` seconds after a moment? Answered from a clip that ends at `end_s`, `steps` steps onwards."""

    moment: int
    tau_a: float
    end_s: float
    steps: int


def questions(moments: Moments, tau_a: Sequence[float]) -> list[Question]:
    """All questions about a video, in the order in which their clips end, none later than its moment.

    The model answers `data.tau_a` ahead, and one step (1 / data.rate) more with each that it decodes. A time between is
    answered from a clip that ends earlier.
    """
    own_s = max(moments.cfg.tau_a, 0.0)
    step_s = 1 / (moments.cfg.rate or moments.fps)
    found = []
    for ahead_s in tau_a:
        steps = max(0, math.ceil((ahead_s - own_s) / step_s - EXACT_S))
        back_s = own_s + steps * step_s - ahead_s
        back_s = back_s if back_s > EXACT_S else 0.0
        found += [Question(k, ahead_s, time_s - back_s, steps) for k, time_s in enumerate(moments.times_s)]
    return sorted(found, key=lambda question: (question.end_s, question.steps))


# ------------------------------------------------------------------------------------------- what the network is shown


class FeatureWindows:
    """The step features of clips of stored features."""

    def __init__(self, net: Sgear, moments: Moments, device: torch.device) -> None:
        assert moments.features is not None
        self.net, self.features, self.video, self.device = net, moments.features, moments.path.stem, device

    def at(self, choice: Choice) -> list[Steps]:
        """One view. Raises: SampleError when the clip has no feature."""
        vectors = self.features.read(self.video, choice.numbers, choice.among)
        return [self.net.standardize(vectors[None].to(self.device))]


class FrameWindows:
    """The step features of clips of frames, each of which is decoded, and goes through the ViT, once.

    The clips are asked for one after the other, as in `choices`, in the order of their ends. Tokens that none of the
    clips to come needs are forgotten: memory does not grow with the video.
    """

    def __init__(self, net: Sgear, path: Path, choices: Sequence[Choice], cfg: Config, device: torch.device) -> None:
        self.net, self.path = net, path
        firsts = [choice.numbers[0] for choice in reversed(choices)]
        self.needed_from = list(itertools.accumulate(firsts, min))  # by this and all later clips; the next one is last
        numbers = sorted({number for choice in choices for number in choice.numbers})
        self.whole = cfg.model.kind == "sgear" and hasattr(net, "TCA")
        loader = Loader(
            frames.Stretches(path, numbers, cfg.data.frames),
            cfg.loader.model_copy(update={"batch_size": 1}),
            train=False,
            device=device,
            transform=data.transform(cfg, crops=cfg.eval.crops, flips=cfg.eval.flips),
        )
        self.loader, self.stretches = loader, iter(loader)
        self.tokens: dict[int, Tensor] = {}
        self.reached = -1

    def at(self, choice: Choice) -> list[Steps]:
        """One for each view of the frames. Raises: SampleError when one of them could not be read."""
        while self.reached < choice.numbers[-1] and (batch := next(self.stretches, None)) is not None:
            self._encode(batch)
        first = self.needed_from.pop()
        for number in [number for number in self.tokens if number < first]:
            del self.tokens[number]
        missing = [number for number in choice.numbers if number not in self.tokens]
        if missing:
            reason = next(iter(self.loader.bad.values()), "it cannot be decoded")
            raise SampleError(self.path, f"frame {missing[0]} is missing: {reason}")
        window = torch.cat([self.tokens[number] for number in choice.numbers], dim=1)
        return [self.net.contextualize(view) for view in window.split(1)]

    def _encode(self, batch: dict[str, Any]) -> None:
        tokens = self.net.backbone(batch["video"].flatten(0, -5))  # from (1,[views,]3,n,H,W)
        if not self.whole:
            tokens = tokens[:, :, :1]
        numbers = batch["numbers"][0].tolist()
        self.tokens.update({number: tokens[:, k : k + 1].clone() for k, number in enumerate(numbers)})
        self.reached = numbers[-1]


def windows_of(
    net: Sgear, moments: Moments, choices: Sequence[Choice], cfg: Config, job: Run
) -> FeatureWindows | FrameWindows:
    """What the network sees of these clips, which are then asked for in this order, that of their ends."""
    if moments.features is not None:
        return FeatureWindows(net, moments, job.device)
    return FrameWindows(net, moments.path, choices, cfg, job.device)


# --------------------------------------------------------------------------------------------------------- the command


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Answer for every video of `predict.input`; one that cannot be read is named and left out."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        net, names = weights.answering(cfg, job)
        answers = []
        for path in job.log.progress(find(cfg.predict.input, cfg.data), "predict"):
            try:
                answers.append(predict(net, names, path, cfg, job))
            except (video.VideoError, SampleError) as error:
                job.log.warning(f"left out: {error}")
            if job.stop_requested:
                break
        write_atomic(job.out / "predictions.json", simplejson.dumps(answers, indent=2, ignore_nan=True) + "\n")
        report.write_predictions(job.out / "predict.html", answers)
        job.log.info(f"{len(answers)} videos answered: {job.out / 'predictions.json'}, {job.out / 'predict.html'}")
        return answers


def find(path: Path, cfg: DataConfig) -> list[Path]:
    """The video itself, or all videos below a folder; for features, a name will do.

    Raises: ValueError when there is none.
    """
    if path.is_file() or cfg.source == "frames" or (cfg.source == "features" and not path.exists()):
        return [path]
    found = video.videos_in(path) if path.is_dir() else []
    if not found:
        raise ValueError(f"predict.input={path} is neither a video nor a folder with videos")
    return found


def predict(net: Sgear, names: Sequence[str], path: Path, cfg: Config, job: Run) -> dict[str, Any]:
    """The likeliest next actions at every moment of a video; damaged moments are left out.

    Raises: VideoError, SampleError when nothing can be read.
    """
    moments = Moments(path, cfg.data, cfg.predict.hop_s)
    own_s = max(cfg.data.tau_a, 0.0)
    others = [tau_a for tau_a in cfg.predict.tau_a if tau_a != own_s]
    rows: dict[tuple[int, float], np.ndarray] = {}
    for question, logits in answered(net, moments, questions(moments, [own_s, *others]), cfg, job):
        rows[question.moment, question.tau_a] = logits
    numbers = sorted(moment for moment, tau_a in rows if tau_a == own_s)
    if not numbers:
        raise SampleError(path, "no moment could be answered")
    shares = torch.from_numpy(np.stack([rows[k, own_s] for k in numbers])).double().softmax(1).numpy().round(6)
    strongest = np.argsort(-shares.max(0), kind="stable")[:CURVES]

    def told(number: int, tau_a: float) -> dict[str, Any]:
        top = report.best_of(rows[number, tau_a], names, cfg.predict.topk)
        return {"starts_s": moments.times_s[number] + tau_a, "top": top}

    return {
        "video": str(path),
        "duration_s": moments.duration_s,
        "tau_a": own_s,
        "hop_s": cfg.predict.hop_s,
        "curves": {names[k]: shares[:, k].tolist() for k in strongest},
        "moments": [
            {
                "time_s": moments.times_s[number],
                **told(number, own_s),
                "further": [{"tau_a": t, **told(number, t)} for t in others if (number, t) in rows],
            }
            for number in numbers
        ],
    }


@torch.inference_mode()
def answered(
    net: Sgear, moments: Moments, asked: Sequence[Question], cfg: Config, job: Run
) -> Iterator[tuple[Question, np.ndarray]]:
    """The questions that can be answered, with the scores (K,) of all actions.

    Raises: VideoError, SampleError when none can.
    """
    choices: list[tuple[Question, Choice]] = []
    for question in asked:
        try:
            choices.append((question, moments.choose(question.end_s)))
        except ValueError:  # nothing was to be seen so early
            continue
    if not choices:
        raise SampleError(moments.path, "has no frame that can be seen at any of the moments")
    windows = windows_of(net, moments, [choice for _, choice in choices], cfg, job)
    lost, count = "", 0
    for question, choice in choices:
        with autocast(cfg.precision, job.device):
            try:
                views = windows.at(choice)
            except SampleError as error:
                lost = lost or str(error)
                continue
            scores = [_scores(net, view, question.steps) for view in views]
        count += 1
        yield question, torch.stack(scores).mean(0).cpu().numpy()
    if not count:
        raise SampleError(moments.path, lost)
    if lost:
        job.log.warning(f"{len(choices) - count} of {len(choices)} moments left out: {lost}")


def _scores(net: Sgear, view: Steps, steps: int) -> Tensor:
    """Scores (K,) of the action `steps` steps after the one that the model answers for."""
    if not steps:
        return net.anticipate(*view).logits["action"][0].float()
    return net.ahead(*view, steps + 1)[0, -1].float()


if __name__ == "__main__":
    main()
