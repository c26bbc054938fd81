"""What the language model is asked and how its answer is learned: questions, conversations, token ids and labels.

LLaVA (Liu et al., 2023), LLaMA 2 conversation: `[INST] <<SYS>> ... <</SYS>> <image> question [/INST] answer </s>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from projects.lego import lemma

IMAGE, IGNORED = -200, -100
"""In token ids: where the frame's embeddings go. In labels: tokens that are not learned."""
TAG, INSTRUCTED, STOP = "<image>", "[/INST]", "</s>"

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
QUESTION = "How does the person properly {} that is displayed in the video frame?"

Narrator = Literal["count", "pattern"]


def cleaned(action: str, dataset: str, narrator: Narrator = "count") -> str:
    """An action as it stands in a question. EPIC-KITCHENS labels stay; Ego4D narrations lose their narrator.

    `count`, as published, drops the first two characters twice, whatever they are, and gives the first word its base
    form: "#C C picks up the knife" becomes "pick up the knife", and "#C picks" "cks". `pattern` drops a narrator of
    any spelling ("#C C", "#c", "#O The man X") and nothing else.
    """
    if dataset != "ego4d":
        return action
    if narrator == "count":
        text = action[2:].strip()[2:].strip()
    else:
        text = re.sub(r"^\s*#\s*\w+\s+(?:C\s+|The \w+ [A-Z]\s+)?", "", action, flags=re.IGNORECASE).strip()
    first, blank, rest = text.partition(" ")
    return lemma.verb(first.lower()) + blank + rest


def question(action: str, dataset: str, narrator: Narrator = "count") -> str:
    """What is asked about a frame before an action."""
    return QUESTION.format(cleaned(action, dataset, narrator))


def prompt(turns: Sequence[Mapping[str, str]]) -> str:
    """The text of a conversation: turns {"from": "human" or "gpt", "value": ...}, beginning with a human one.

    The image tag moves to the front of its turn. A conversation that ends with a question is one to be answered.

    Raises:
        ValueError: when the turns do not alternate, or an answer holds an image.
    """
    words = ""
    for place, turn in enumerate(turns):
        speaker = ("human", "gpt")[place % 2]
        if turn["from"] != speaker:
            raise ValueError(f"turn {place} of a conversation should come from {speaker}, not {turn['from']!r}")
        said = turn["value"]
        if TAG in said:
            if speaker == "gpt":
                raise ValueError(f"an answer may not hold {TAG}: {said!r}")
            said = f"{TAG}\n" + said.replace(TAG, "").strip()
            said = said.strip()
        if speaker == "gpt":
            words += f" {said} {STOP}"
        else:
            opening = f"<<SYS>>\n{SYSTEM}\n<</SYS>>\n\n" if place == 0 else ""
            words += ("<s>" if place else "") + f"[INST] {opening}{said} {INSTRUCTED}"
    return words


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation, IMAGE where the frame goes, and what of them is learned (IGNORED elsewhere)."""

    ids: Tensor
    labels: Tensor


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Token ids (L,) and labels (L,) of a conversation's text.

    Learned are the answers: all after each `[/INST]` up to and with the following `</s>`. Where they begin is read from
    the tokens' places in the text; the original counts tokens of pieces, and where its count is off it silently learns
    nothing.

    Raises:
        ValueError: when a border between question and answer does not lie between two tokens.
    """
    ids: list[int] = []
    learned: list[bool] = []
    pieces = text.split(TAG)
    for number, piece in enumerate(pieces):
        found = tokenizer(piece, return_offsets_mapping=True)
        begin = 0 if number == 0 else _specials_in_front(found["input_ids"], tokenizer)
        spans = [(m.start(), m.end()) for m in re.finditer(r"\[/INST\](?P<answer>.*?(?:</s>|\Z))", piece, re.DOTALL)]
        marks = [(start + len(INSTRUCTED), end) for start, end in spans]
        for token, (start, end) in list(zip(found["input_ids"], found["offset_mapping"], strict=True))[begin:]:
            inside = any(left <= start and end <= right and end > left for left, right in marks)
            if not inside and any(start < left < end for left, _ in marks):
                raise ValueError(
                    f"the tokenizer joins {INSTRUCTED} and the answer in one token ({piece[start:end]!r}); use the "
                    "tokenizer of the checkpoint, with its legacy setting"
                )
            ids.append(token)
            learned.append(inside)
        if number + 1 < len(pieces):
            ids.append(IMAGE)
            learned.append(False)
    tokens = torch.tensor(ids)
    return Encoded(tokens, torch.where(torch.tensor(learned), tokens, IGNORED))


def _specials_in_front(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many ids the tokenizer put in front of a piece: those of a text's beginning."""
    return int(bool(ids) and ids[0] == tokenizer.bos_token_id)


def collate(samples: Sequence[Mapping[str, Any]], pad_id: int, longest: int) -> dict[str, Any]:
    """Samples with `ids` and `labels` padded on the right to one length, at most `longest`: (B,L), and `mask` (B,L)."""
    length = min(max(len(sample["ids"]) for sample in samples), longest)
    ids = torch.full((len(samples), length), pad_id)
    labels = torch.full((len(samples), length), IGNORED)
    mask = torch.zeros(len(samples), length, dtype=torch.bool)
    for row, sample in enumerate(samples):
        kept = min(len(sample["ids"]), length)
        ids[row, :kept], labels[row, :kept] = sample["ids"][:kept], sample["labels"][:kept]
        mask[row, :kept] = True
    others = {key: [sample[key] for sample in samples] for key in samples[0] if key not in ("ids", "labels")}
    return {"ids": ids, "labels": labels, "mask": mask, **others}
