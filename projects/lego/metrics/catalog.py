"""Every score by its published name, built from the folder of the metrics' weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from projects.lego.metrics import blip, egovlp, networks
from projects.lego.metrics.pixels import floats
from projects.lego.metrics.places import find
from projects.lego.metrics.scores import Batch, Captioned, Embeddings, LpipsScore, Memory, Psnr, Score

NAMES = (
    "fid", "psnr", "lpips_squeeze", "lpips_vgg", "lpips_alex", "clip_image_sim", "egovlp_image_sim",
    "egovlp_plus_image_sim", "blip_base_egovlp_sim", "blip_large_egovlp_sim",
)  # fmt: skip
FRAMES = {"ego4d": 4, "epickitchen": 16}
"""How often EgoVLP sees a still frame."""
EGOVLP_FILES = {"ego4d": "egovlp.pth", "epickitchen": "epic_mir_plus.pth"}
LPIPS_FILES = {
    "alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"
}  # fmt: skip


@dataclass
class Makers:
    """Builds scores from the folder of their weights; networks that two scores share are loaded once."""

    weights: Path
    dataset: str
    device: torch.device
    memory: Callable[[str, Path], Memory]
    """(name of a score, its weights) -> what was computed before."""
    loaded: dict[str, Any] = field(default_factory=dict)

    def make(self, name: str) -> Score:
        """The score of this name.

        Raises:
            MissingWeightsError: naming the file and its place.
            ValueError: for an unknown name, or weights of another network.
        """
        if name not in NAMES:
            raise ValueError(f"no metric is called {name!r}; there are {', '.join(NAMES)}")
        kind, _, variant = name.partition("_")
        made: Score = getattr(self, f"_{kind}")(name, variant)
        return made

    def _psnr(self, name: str, variant: str) -> Score:
        return Psnr()

    def _lpips(self, name: str, variant: str) -> Score:
        model = networks.Lpips(variant, find(self.weights, LPIPS_FILES[variant]))  # type: ignore[arg-type]
        return LpipsScore(model.to(self.device), variant)

    def _fid(self, name: str, variant: str) -> Score:
        path = find(self.weights, "pt_inception-2015-12-05-6726825d.pth")
        model = networks.fid_inception(path).to(self.device)
        return self._pictures(name, path, lambda images, _: model(images), sets=True)

    def _clip(self, name: str, variant: str) -> Score:
        path = find(self.weights, "clip-vit-large-patch14")
        model = networks.clip_images(path).to(self.device)
        return self._pictures(name, path, lambda images, _: model(images))

    def _egovlp(self, name: str, variant: str) -> Score:
        path = find(self.weights, EGOVLP_FILES[self.dataset])
        clips = egovlp.Clips(self._towers(path))
        if not variant.startswith("plus"):
            return self._pictures(name, path, lambda images, _: clips(images))
        return self._pictures(name, path, lambda images, sources: clips(images, sources), fit="source")

    def _blip(self, name: str, variant: str) -> Score:
        size: blip.Size = "large" if variant.startswith("large") else "base"
        file = {"base": "model_base_caption_capfilt_large.pth", "large": "model_large_caption.pth"}[size]
        captioner = blip.captioner(find(self.weights, file), size).to(self.device)
        writer = blip.Captions(captioner, find(self.weights, "bert-base-uncased"))
        towers = self._towers(find(self.weights, EGOVLP_FILES[self.dataset]))
        tokenizer = AutoTokenizer.from_pretrained(find(self.weights, "distilbert-base-uncased"), local_files_only=True)

        def embed(texts: Sequence[str]) -> Tensor:
            tokens = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True).to(self.device)
            return towers.embed_text(tokens["input_ids"], tokens["attention_mask"])

        return Captioned(name, lambda batch: writer(batch.image), embed)

    def _towers(self, path: Path) -> egovlp.EgoVLP:
        if "egovlp" not in self.loaded:
            self.loaded["egovlp"] = egovlp.load(path, FRAMES[self.dataset]).to(self.device)
        towers: egovlp.EgoVLP = self.loaded["egovlp"]
        return towers

    def _pictures(
        self,
        name: str,
        path: Path,
        embed: Callable[[list[Tensor], list[Tensor]], Tensor],
        *,
        sets: bool = False,
        fit: str = "",
    ) -> Score:
        def both(images: Sequence[Tensor], batch: Batch) -> Tensor:
            sources = [floats(source).to(self.device) for source in batch.source]
            return embed([image.to(self.device) for image in images], sources)

        def answer(batch: Batch) -> Tensor:
            images = batch.matched(batch.source) if fit else [floats(image) for image in batch.image]
            return both(images, batch)

        def truth(batch: Batch) -> Tensor:
            return both([floats(target) for target in batch.target], batch)

        return Embeddings(name, answer, truth, sets, self.memory(name, path))
