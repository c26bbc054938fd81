"""Instruction data: conversations about frames -> token ids, labels and pixels, in batches of like lengths."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from core import dist
from core.data.order import Sampler, randomness
from projects.lego import data, prompts
from projects.lego.config import CurationConfig, DataConfig
from projects.lego.model.vision import clip_pixels


@dataclass(frozen=True)
class Conversation:
    """A frame of a dataset's training part and what is said about it."""

    dataset: str
    id: str
    image: str
    turns: tuple[dict[str, str], ...]


def load(cfg: CurationConfig, where: DataConfig) -> list[Conversation]:
    """All conversations of the configured datasets, in the order of their files.

    Raises:
        ValueError: naming the file, and the record that is malformed.
    """
    if cfg.file and len(where.datasets) > 1:
        raise ValueError("curation.file holds the conversations of one dataset; set data.datasets to that one")
    found = []
    for dataset in where.datasets:
        path = cfg.file or where.root / "curation_from_gpt" / f"{dataset}_for_tuning_forecasting.json"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; it comes with the released dataset, or from curate")
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: damaged or no JSON ({error})") from None
        for number, record in enumerate(records):
            if not isinstance(record, dict) or not {"image", "conversations"} <= record.keys():
                raise ValueError(f"{path}: record {number} needs image and conversations")
            name = f"{dataset}/{record.get('id', number)}"
            found.append(Conversation(dataset, name, record["image"], tuple(record["conversations"])))
    return found


def split(conversations: Sequence[Conversation], share: float) -> tuple[list[Conversation], list[Conversation]]:
    """The conversations that train, and those held out: whole clips, the same at every call."""
    clips = sorted({c.image.split("/")[0] for c in conversations})
    random.Random(0).shuffle(clips)
    held = set(clips[: round(len(clips) * share)])
    return (
        [c for c in conversations if c.image.split("/")[0] not in held],
        [c for c in conversations if c.image.split("/")[0] in held],
    )


class Conversations:
    """Samples: id, `ids` and `labels` (L,), `pixels` (3,side,side). Texts are encoded once, when the set is made."""

    def __init__(
        self,
        conversations: Sequence[Conversation],
        where: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        side: int,
        longest: int,
    ) -> None:
        self.conversations, self.root, self.side = tuple(conversations), where.root, side
        self.encoded: list[prompts.Encoded] = []
        for conversation in conversations:
            text = prompts.prompt(conversation.turns)
            if text.count(prompts.TAG) != 1:
                raise ValueError(
                    f"conversation {conversation.id} needs one {prompts.TAG}, it has {text.count(prompts.TAG)}"
                )
            found = prompts.encode(text, tokenizer)
            found = prompts.Encoded(found.ids[:longest], found.labels[:longest])
            if not bool((found.labels[1:] != prompts.IGNORED).any()):
                raise ValueError(f"conversation {conversation.id} has no answer within {longest} tokens")
            self.encoded.append(found)

    def __len__(self) -> int:
        return len(self.conversations)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """One conversation with its frame."""
        conversation, encoded = self.conversations[index], self.encoded[index]
        image = data.read_image(data.frames(self.root, conversation.dataset, "train") / conversation.image)
        pixels = clip_pixels(image, self.side)
        return {"id": conversation.id, "ids": encoded.ids, "labels": encoded.labels, "pixels": pixels}


class Collate:
    """A batch of conversations: ids, labels and mask (B,L), pixels (B,3,side,side); picklable for workers."""

    def __init__(self, pad_id: int, longest: int) -> None:
        self.pad_id, self.longest = pad_id, longest

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Pad on the right to the longest."""
        batch = prompts.collate(samples, self.pad_id, self.longest)
        return {**batch, "pixels": torch.stack(batch["pixels"])}


class Bucketed:
    """Training batches of texts of like length, so that little of a batch is padding.

    The permutation of `Sampler` is cut into stretches of `bucket` global batches; each is sorted by length and cut into
    global batches, and all batches of an epoch are shuffled. R processes train on what one with R times the batch
    would.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, bucket: int) -> None:
        world = dist.world()
        self.lengths, self.bucket, self.seed = tuple(lengths), bucket, seed
        self.own = Sampler(len(lengths), batch_size, True, seed, False, world.rank, world.size)
        self.whole = Sampler(len(lengths), batch_size * world.size, True, seed)

    def __len__(self) -> int:
        return len(self.own)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """The batches of this process from number `start` on."""
        every = list(self.whole.batches(epoch))
        stretches = [every[k : k + self.bucket] for k in range(0, len(every), self.bucket)]
        groups: list[list[int]] = []
        for stretch in stretches:
            order = sorted((index for group in stretch for index in group), key=lambda index: self.lengths[index])
            size = self.whole.batch_size
            groups += [order[k : k + size] for k in range(0, len(order), size)]
        randomness(self.seed, epoch, "batches").shuffle(groups)
        for group in groups[start:]:
            yield self.own.share(group)


def waste(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """The share of padding in these batches."""
    used = sum(lengths[index] for batch in batches for index in batch)
    made = sum(max(lengths[index] for index in batch) * len(batch) for batch in batches)
    return 1 - used / made if made else 0.0
