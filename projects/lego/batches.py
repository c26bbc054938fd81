"""From pairs on disk to what the UNet is shown: the frozen networks run now, or their answers come from the cache."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from diffusers import AutoencoderKL
from torch import Tensor

from core import dist
from core.checkpoint import Store
from core.data import Batch, Loader, stack, to_device
from core.run import Run
from projects.lego import cache, data, weights
from projects.lego.config import Config
from projects.lego.data import Pairs, Record
from projects.lego.model import Condition, TextEncoder, encode
from projects.lego.sight import Sight

PARTS = ("train", "val")


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

    def __init__(self, cfg: Config, job: Run, sight: Sight | None = None) -> None:
        self.cfg, self.job, self.sight = cfg, job, sight
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
        return True

    def _list_missing(self) -> None:
        """Name the files that are not there, all of them in a file of the run."""
        if not dist.is_main():
            return
        kinds = data.wanted_features(self.cfg.data, self.cfg.model)
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
            latents=self.latents.get(part), texts=self.texts,
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
        pairs = Pairs(self.records[part][:count], self.cfg.data, self.cfg.model, texts=self.texts)
        samples = [pairs.sample(index, random.Random(0)) for index in range(len(pairs))]
        return to_device(stack(samples), self.job.device)

    def describe(self) -> str:
        """One line for the log."""
        sizes = ", ".join(f"{len(self.records[part])} {part}" for part in PARTS)
        cached = [name for name, there in (("latents", self.latents), ("prompts", self.texts)) if there]
        return (
            f"{self.cfg.data.root}: {sizes} pairs of {', '.join(self.cfg.data.datasets)}; cached: {cached or 'nothing'}"
        )


def condition(batch: Batch, text: TextEncoder | None, sight: Sight | None = None) -> Condition:
    """The conditions of a batch; its prompts are encoded now unless their states came with it, and so is the sight."""
    states: Any = batch.get("text")
    if states is None:
        assert text is not None, "the batch has no states of its prompts and there is no text encoder"
        states = text.encode(batch["prompt"])
    image = batch.get("image_features") if sight is None else sight(batch)
    return Condition(states, image, batch.get("text_features"))
