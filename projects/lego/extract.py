"""What the tuned language model says and sees, in the files that the diffusion stage reads.

    python -m projects.lego.extract projects/lego/configs/ego4d_vlm.yaml extract.vlm=FOLDER extract.split=val
    torchrun --standalone --nproc-per-node 8 -m projects.lego.extract CONFIG extract.vlm=FOLDER extract.split=train

For each action a description, image features (256,D) and text features (T,D) in 16 bit, laid out as released (data.py).
What is there is kept and a restart goes on; features of another model are refused. What it will take on the disk is
said first: 2.6 MB a frame for the image features of a 13B model, which need not be stored at all: extract.image=none,
and data.image_features=frames in the diffusion stage.
"""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core import config, dist, run
from core.checkpoint import write_atomic
from core.data import Loader
from core.data.order import randomness
from core.run import Run
from projects.lego import data, prompts
from projects.lego.config import ExtractConfig, VlmConfig
from projects.lego.data import Record
from projects.lego.descriptions import Notes, attach, key
from projects.lego.model.vision import clip_pixels
from projects.lego.model.vlm_files import open_tokenizer, open_vlm

SPARE = 2e9  # bytes that stay free on the disk


@dataclass(frozen=True)
class Described:
    """What the language model makes of a frame and an action."""

    description: str
    image_features: Tensor
    """(N,D), what it sees; the same for any action."""
    text_features: Tensor
    """(T,D): row i predicted token i of the description, the end token among them."""


class Describer:
    """A language model that describes actions in frames; opened from any folder that `open_vlm` reads."""

    def __init__(
        self, folder: str | Path, device: torch.device, *, vision: str = "", cfg: ExtractConfig | None = None
    ) -> None:
        half = torch.float16 if device.type == "cuda" else torch.float32
        self.net, self.report = open_vlm(folder, vision=vision, dtype=half)
        self.net.to(device).requires_grad_(False)
        self.tokenizer = open_tokenizer(folder)
        self.cfg, self.device, self.dtype = cfg or ExtractConfig(), device, half
        special = (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id)
        self.stop = [token for token in special if token is not None]

    @torch.inference_mode()
    def see(self, pixels: Tensor) -> Tensor:
        """Image features (B,N,D) of pixels (B,3,side,side)."""
        features: Tensor = self.net.image_features(pixels.to(self.device, self.dtype))
        return features

    @torch.inference_mode()
    def patches(self, pixels: Tensor) -> Tensor:
        """CLIP's patches (B,N,width), from which the projector makes image features."""
        found: Tensor = self.net.vision(pixels.to(self.device, self.dtype))
        return found

    def describe(
        self, images: Sequence[Image.Image], actions: Sequence[str], dataset: str, names: Sequence[str] = ()
    ) -> list[Described]:
        """Descriptions of actions, as the dataset labels them, in frames; `names` and the seed decide what is drawn."""
        texts = [prompts.question(action, dataset) for action in actions]
        return self.answer(self._pixels(images), texts, names or list(actions))

    def read(
        self, images: Sequence[Image.Image], actions: Sequence[str], dataset: str, descriptions: Sequence[str]
    ) -> list[Described]:
        """Features of descriptions that are there already, as if the model had written them."""
        features = self.see(self._pixels(images))
        given, answers = [], []
        for action, description in zip(actions, descriptions, strict=True):
            asked = f"{prompts.TAG}\n{prompts.question(action, dataset)}"
            text = prompts.prompt([{"from": "human", "value": asked}, {"from": "gpt", "value": description}])
            encoded = prompts.encode(text, self.tokenizer)
            learned = encoded.labels != prompts.IGNORED
            given.append(encoded.ids[~learned])
            answers.append(encoded.ids[learned])
        states = self.net.read(given, answers, features)
        return [
            Described(description, seen.float().cpu(), read)
            for description, seen, read in zip(descriptions, features, states, strict=True)
        ]

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.stack([clip_pixels(image, self.net.vision.side) for image in images])

    def answer(self, pixels: Tensor, questions: Sequence[str], names: Sequence[str]) -> list[Described]:
        """Answers to questions about pixels (B,3,side,side)."""
        features = self.see(pixels)
        given = []
        for question in questions:
            text = prompts.prompt([{"from": "human", "value": f"{prompts.TAG}\n{question}"}])
            given.append(prompts.encode(text, self.tokenizer).ids)
        cfg = self.cfg
        drawn = None
        if cfg.temperature > 0:
            seeds = [randomness(cfg.seed, 0, name).getrandbits(63) for name in names]
            drawn = [torch.Generator().manual_seed(seed) for seed in seeds]
        written = self.net.write(
            given, features, generators=drawn, stop=self.stop, longest=cfg.longest,
            temperature=cfg.temperature or 1.0, top_p=cfg.top_p,
        )  # fmt: skip
        return [
            Described(self.text(answer.ids), seen.float().cpu(), answer.states)
            for answer, seen in zip(written, features, strict=True)
        ]

    def text(self, ids: Tensor) -> str:
        """The description of an answer's tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def main(argv: Sequence[str] | None = None) -> dict[str, int]:
    """Write what is not there yet; returns how many actions were described."""
    cfg = config.parse(VlmConfig, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        return extract(cfg, job)


def extract(cfg: VlmConfig, job: Run) -> dict[str, int]:
    """Descriptions and features of `extract.split`, shared over all processes.

    Raises:
        ValueError: when the disk is too small, or what is there was written by another model.
    """
    folder = Path(cfg.extract.vlm) if cfg.extract.vlm else job.out / "vlm"
    records = data.load(cfg.data, cfg.extract.split)
    describer = Describer(folder, job.device, vision=cfg.model.vision, cfg=cfg.extract)
    job.log.info(str(describer.report))
    notes: dict[str, Notes] = {dataset: Notes(cfg, dataset, folder) for dataset in cfg.data.datasets}
    for note in notes.values():
        note.sign(cfg.extract.replace)
    known: dict[str, dict[str, dict[str, str]]] = {dataset: note.read() for dataset, note in notes.items()}
    todo = dist.broadcast([
        i for i, record in enumerate(records)
        if key(record) not in known[record.dataset] or missing(record, cfg)
    ])  # fmt: skip
    job.log.info(
        f"{len(todo)} of {len(records)} actions are to be described; {storage(len(todo), describer, cfg, job)}"
    )
    if todo:
        frames = Frames([records[i] for i in todo], cfg, describer.net.vision.side)
        options = cfg.loader.model_copy(update={"batch_size": cfg.extract.batch_size})
        loader = Loader(frames, options, train=False, device=job.device)
        chosen = {record.id: record for record in frames.records}
        for batch in job.log.progress(loader, "actions"):
            described = describer.answer(batch["pixels"], batch["question"], batch["id"])
            stored = describer.patches(batch["pixels"]) if cfg.extract.image == "patches" else None
            for place, name in enumerate(batch["id"]):
                write(chosen[name], described[place], None if stored is None else stored[place], cfg)
                notes[chosen[name].dataset].add(chosen[name], described[place].description)
            if job.stop_requested:
                break
        if job.stopping():
            job.log.info("stopped; the same command goes on")
            return {}
        job.log.info(f"described {loader.coverage()}")
    dist.barrier()
    if dist.is_main():
        for dataset, note in notes.items():
            merged = note.merge([record for record in records if record.dataset == dataset])
            job.log.info(f"{note.merged}: {sum(map(len, merged.values()))} descriptions")
            if cfg.extract.prompt:
                path = attach(merged, cfg, dataset)
                job.log.info(f"{path}: they are the field {cfg.extract.prompt!r} now")
    dist.barrier()
    return {"described": len(todo), "actions": len(records)}


class Frames:
    """The frames that are described, as CLIP sees them, with their questions."""

    def __init__(self, records: Sequence[Record], cfg: VlmConfig, side: int) -> None:
        self.records, self.cfg, self.side = tuple(records), cfg, side

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """id, question, pixels (3,side,side)."""
        record, cfg = self.records[index], self.cfg
        place = data.target_path if cfg.extract.frame == "target" else data.source_path
        asked = prompts.question(record.prompt("action"), record.dataset, cfg.curation.narrator)
        pixels = clip_pixels(data.read_image(place(cfg.data.root, record)), self.side)
        return {"id": record.id, "question": asked, "pixels": pixels}


def kinds(cfg: VlmConfig) -> list[data.Kind]:
    """The feature files that are written."""
    wanted: list[data.Kind] = ["image"] if cfg.extract.image != "none" else []
    return [*wanted, "text"] if cfg.extract.text else wanted


def missing(record: Record, cfg: VlmConfig) -> bool:
    """Whether a feature file of an action is not there."""
    return any(not data.feature_path(cfg.data.root, record, kind, cfg.data.vllm).is_file() for kind in kinds(cfg))


def storage(count: int, describer: Describer, cfg: VlmConfig, job: Run) -> str:
    """What the files will take on the disk, in words.

    Raises:
        ValueError: when that is more than there is, unless the folder cannot be asked.
    """
    width, patches = describer.net.language.config.hidden_size, describer.net.vision.patches
    image = {"files": patches * width, "patches": patches * describer.net.vision.tower.config.hidden_size, "none": 0}
    need = count * 2 * (image[cfg.extract.image] + (60 * width if cfg.extract.text else 0))
    try:
        free = shutil.disk_usage(cfg.data.root).free
    except OSError:
        return f"about {need / 1e9:.3g} GB"
    if need + SPARE > free and need > SPARE / 100:
        raise ValueError(
            f"the features need about {need / 1e9:.3g} GB, {cfg.data.root} has {free / 1e9:.3g} GB free; set "
            "extract.image=none and let the diffusion stage make them (data.image_features=frames), or store CLIP's "
            "patches, a fifth of it (extract.image=patches)"
        )
    return f"about {need / 1e9:.3g} GB of features ({free / 1e9:.3g} GB are free)"


def write(record: Record, described: Described, patches: Tensor | None, cfg: VlmConfig) -> None:
    """The feature files of an action, in 16 bit as released."""
    values: dict[data.Kind, Tensor] = {}
    if cfg.extract.image != "none":
        values["image"] = described.image_features if patches is None else patches
    if cfg.extract.text:
        values["text"] = described.text_features
    for kind, tensor in values.items():
        buffer = io.BytesIO()
        np.save(buffer, tensor.to(torch.float16).cpu().numpy())
        write_atomic(data.feature_path(cfg.data.root, record, kind, cfg.data.vllm), buffer.getvalue())


if __name__ == "__main__":
    main()
