"""From pairs on disk to what the UNet is shown: the frozen networks run now, or their answers come from the cache."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from core import dist
from core.checkpoint import Store
from core.data import Batch, Loader, stack, to_device
from core.run import Run
from projects.lego import cache, data, weights
from projects.lego.config import Config
from projects.lego.data import Pairs, Record
from projects.lego.model import Condition, Conditioner, TextEncoder, encode
from projects.lego.sight import Sight, open_sight

PARTS = ("train", "val")
PATCHES = 256  # image features of a frame in the released files


class Inputs(NamedTuple):
    """One batch as the network wants it."""

    moments: Tensor
    """(B, 8, h, w): mean and log-variance of the target's latents."""
    source: Tensor
    """(B, 4, h, w): mode of the source's latents, not scaled."""
    condition: Condition


class Batches:
    """The pairs of training and validation, the frozen networks and the caches of a run.

    Call `prepare` once; then `loader` gives batches, and `inputs` makes of each what the network wants. `null`
    (1, 77, D) are the states of the empty prompt.

    Raises: ValueError when there is nothing to train on.
    """

    def __init__(self, cfg: Config, job: Run, conditioner: Conditioner) -> None:
        self.cfg, self.job, self.conditioner = cfg, job, conditioner
        self.projection = _settled(conditioner)
        self.sight = open_sight(cfg, conditioner, job)
        self.records: dict[str, list[Record]] = {"train": data.load(cfg.data, "train")}
        self.records["val"] = self._validation()
        if not self.records["train"]:
            raise ValueError(f"{data.annotation_path(cfg.data.root, cfg.data.datasets[0], 'train')}: has no actions")
        self.vae: AutoencoderKL | None
        self.text: TextEncoder | None
        self.vae, self.text = weights.frozen(cfg, job)
        self.null = self.text.encode([""])
        self.latents: dict[str, Store] = {}
        self.texts: Store | None = None
        self.tokens: Store | None = None

    def _validation(self) -> list[Record]:
        paths = [data.annotation_path(self.cfg.data.root, name, "val") for name in self.cfg.data.datasets]
        if all(path.is_file() for path in paths):
            return data.load(self.cfg.data, "val")
        self.job.log.warning(f"no validation: {', '.join(map(str, paths))} not found")
        return []

    def prepare(self) -> bool:
        """List what is missing, fill the caches, let go of networks that are no longer needed; False when stopped."""
        cfg, job = self.cfg, self.job
        self._list_missing()
        half = cfg.cache.precision == "fp16"
        assert self.vae is not None
        assert self.text is not None
        if cfg.cache.use in ("all", "text"):
            name = cache.fingerprint(self.text, "text", half, self.text.source)
            self.texts = Store(cfg.cache.folder / f"text-{name}")
            prompts = {text: None for part in PARTS for text in self.pairs(part).prompts()}
            if not cache.cache_texts(self.text, prompts, self.texts, job, half=half):
                return False
            self.text = None
        if cfg.cache.use in ("all", "latents"):
            name = cache.fingerprint(self.vae, "latents", half, cfg.data.size, cfg.data.root.resolve())
            for part in PARTS:
                flip = part == "train" and cfg.data.flip > 0
                store = Store(cfg.cache.folder / f"latents-{name}{'-flipped' if flip else ''}")
                if not cache.cache_latents(self.vae, self.pairs(part), store, cfg.loader, job, flip=flip, half=half):
                    return False
                self._leave_out(part, store)
                self.latents[part] = store
            if not cfg.show.every:
                self.vae = None
        return not (cfg.model.uses_image and cfg.data.image_features == "projected") or self._prepare_tokens()

    def _prepare_tokens(self) -> bool:
        """Fill the cache of projected image features, and let go of CLIP; False when stopped."""
        cfg, conditioner, sight = self.cfg, self.conditioner, self.sight
        assert conditioner.projection_img is not None
        parts = [cache.fingerprint(net) for net in ((sight.vision, sight.projector) if sight else ())]
        name = cache.fingerprint(conditioner.projection_img, "tokens", cfg.data.root.resolve(), cfg.data.vllm, *parts)
        store = Store(cfg.cache.folder / f"tokens-{name}")
        patches = sight.vision.patches if sight else PATCHES

        def project(batch: Batch) -> Tensor:
            return conditioner.project(sight(batch) if sight else batch["image_features"])

        for part in PARTS:
            row = patches * conditioner.projection_img.out_features
            if not cache.cache_tokens(project, self.pairs(part), store, cfg.loader, self.job, row=row):
                return False
            self._leave_out(part, store)
        self.tokens, self.sight = store, None
        return True

    def confirm(self) -> None:
        """After a run was restored: is its projection the one that image features were made with?

        Raises:
            ValueError: when it is another, and with it the features.
        """
        made = self.tokens is not None or (self.sight is not None and self.sight.folds)
        if made and self.conditioner.projection_img is not None and self.projection is not None:
            now = dist.whole(self.conditioner.projection_img.weight.detach()).cpu()
            if not torch.equal(now, self.projection):
                raise ValueError(
                    f"the run in {self.job.out} began with another projection of image features than this command; "
                    "give its run.seed and model.init again, or let it be (data.image_features=files)"
                )

    def _list_missing(self) -> None:
        """Name the files that are not there, all of them in a file of the run."""
        if not dist.is_main():
            return
        kinds = data.wanted_features(self.cfg.data, self.cfg.model)
        if self.cfg.data.image_features == "projected":  # a full cache needs no files; what it lacks it names itself
            kinds = [kind for kind in kinds if kind != "image"]
        absent = [path for part in PARTS for path in data.missing(self.cfg.data, self.records[part], kinds)]
        if absent:
            place = self.job.out / "missing.txt"
            place.write_text("".join(f"{path}\n" for path in absent), encoding="utf-8")
            self.job.log.warning(f"{len(absent)} files are missing, {absent[0]} for one; all are listed in {place}")

    def _leave_out(self, part: str, store: Store) -> None:
        """Pairs whose frames could not be read are not in the cache.

        Raises: ValueError when more than `loader.max_bad` of the training pairs are lost.
        """
        there = [record for record in self.records[part] if record.id in store]
        lost = len(self.records[part]) - len(there)
        if part == "train" and lost > max(1, self.cfg.loader.max_bad * len(self.records[part])):
            raise ValueError(
                f"{lost} of {len(self.records[part])} training pairs cannot be read, see the warnings above"
            )
        self.records[part] = there

    def pairs(self, part: str) -> Pairs:
        """The dataset of a part, with the caches that are there."""
        return Pairs(
            self.records[part], self.cfg.data, self.cfg.model, train=part == "train",
            latents=self.latents.get(part), texts=self.texts, tokens=self.tokens,
        )  # fmt: skip

    def loader(self, part: str) -> Loader:
        """Batches of a part on the run's device."""
        return Loader(self.pairs(part), self.cfg.loader, train=part == "train", device=self.job.device)

    def inputs(self, batch: Batch) -> Inputs:
        """What the network is shown of a batch."""
        if "moments" in batch:
            source, moments = batch["moments"].split([4, 8], 1)
        else:
            assert self.vae is not None
            source = encode(self.vae, data.to_input(batch["source"]))[:, :4]
            moments = encode(self.vae, data.to_input(batch["target"]))
        return Inputs(moments, source, condition(batch, self.text, self.sight))

    def examples(self, count: int) -> Batch:
        """The first pairs of the validation part (else of training), with their frames."""
        part = "val" if self.records["val"] else "train"
        pairs = Pairs(self.records[part][:count], self.cfg.data, self.cfg.model, texts=self.texts, tokens=self.tokens)
        samples = [pairs.sample(index, random.Random(0)) for index in range(len(pairs))]
        return to_device(stack(samples), self.job.device)

    def describe(self) -> str:
        """One line for the log."""
        sizes = ", ".join(f"{len(self.records[part])} {part}" for part in PARTS)
        kinds = (("latents", self.latents), ("prompts", self.texts), ("image features", self.tokens))
        cached = [name for name, there in kinds if there]
        return (
            f"{self.cfg.data.root}: {sizes} pairs of {', '.join(self.cfg.data.datasets)}; cached: {cached or 'nothing'}"
        )


def condition(batch: Batch, text: TextEncoder | None, sight: Sight | None = None) -> Condition:
    """The conditions of a batch; its prompts are encoded now unless their states came with it, and so is the sight."""
    states: Any = batch.get("text")
    if states is None:
        assert text is not None, "the batch has no states of its prompts and there is no text encoder"
        states = text.encode(batch["prompt"])
    tokens = batch.get("image_tokens")
    image = batch.get("image_features") if sight is None or tokens is not None else sight(batch)
    return Condition(states, image, batch.get("text_features"), tokens)


def _settled(conditioner: Conditioner) -> Tensor | None:
    """Give all processes the main one's projection now, as wrapping would do later, and return its weights.

    What is folded or cached before the network is wrapped must be made with them.
    """
    projection = conditioner.projection_img
    if projection is None:
        return None
    projection.load_state_dict(dist.broadcast({name: value.cpu() for name, value in projection.state_dict().items()}))
    return projection.weight.detach().cpu().clone()
