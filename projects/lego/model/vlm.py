"""LLaVA: a language model that reads a frame's patches as if they were words (Liu et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from projects.lego.model.vision import Vision, projector
from projects.lego.prompts import IGNORED, IMAGE


class Learned(NamedTuple):
    """What the language model says where something is to be learned: logits (M,V) and the next tokens (M,)."""

    logits: Tensor
    targets: Tensor


class Written(NamedTuple):
    """An answer: its token ids (T,), the end token among them, and the states that predicted them (T,width)."""

    ids: Tensor
    states: Tensor


class Vlm(nn.Module):
    """CLIP, a projector, and a causal language model of transformers; sizes as their configurations say."""

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], kind: str = "linear") -> None:
        super().__init__()
        text_config = AutoConfig.for_model(**{"model_type": "llama", **text})
        self.vision = Vision(CLIPVisionConfig(**vision))
        self.kind = kind
        self.projector = projector(self.vision.tower.config.hidden_size, text_config.hidden_size, kind)
        self.language = AutoModelForCausalLM.from_config(text_config)

    @property
    def config(self) -> dict[str, Any]:
        """The sizes that make this network again."""
        return {
            "vision": self.vision.tower.config.to_diff_dict(),
            "text": self.language.config.to_diff_dict() | {"model_type": self.language.config.model_type},
            "kind": self.kind,
        }

    def image_features(self, pixels: Tensor) -> Tensor:
        """Pixels (B,3,side,side) to (B,N,width of the words). They do not depend on the language model."""
        out: Tensor = self.projector(self.vision(pixels))
        return out

    def forward(self, ids: Tensor, labels: Tensor, mask: Tensor, pixels: Tensor) -> Learned:
        """ids, labels and mask (B,L) with one IMAGE in each row, pixels (B,3,side,side).

        Only the positions that are learned meet the vocabulary: logits of questions and padding are never made.
        """
        embedded, mask, labels = self.expand(ids, mask, self.image_features(pixels), labels)
        states = self.states(embedded, mask)
        targets = labels[:, 1:]
        learned = targets != IGNORED
        return Learned(self.language.lm_head(states[:, :-1][learned]), targets[learned])

    def states(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """States after the final norm, (B,L,width), of embeddings (B,L,width) and their mask (B,L)."""
        out: Tensor = self.language.model(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions(mask), use_cache=False
        ).last_hidden_state
        return out

    def expand(
        self, ids: Tensor, mask: Tensor, images: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put the N rows of each image (B,N,width) in the place of IMAGE: embeddings, mask and labels of L-1+N.

        Raises:
            ValueError: when a row has no image, or more than one.
        """
        places = ids == IMAGE
        if not bool((places.sum(1) == 1).all()):
            raise ValueError(f"every text needs one image, these have {places.sum(1).tolist()}")
        labels = torch.full_like(ids, IGNORED) if labels is None else labels
        count = images.shape[1]
        words = self.language.get_input_embeddings()(ids.masked_fill(places, 0))
        # A row is its tokens with the image's put where its tag stands: an order of (image rows, tokens) by place.
        length = ids.shape[1] - 1 + count
        at = places.int().argmax(1, keepdim=True)  # (B,1)
        place = torch.arange(length, device=ids.device).expand(len(ids), -1)
        inside = (place >= at) & (place < at + count)
        token = torch.where(place < at, place, (place - count + 1).clamp(min=0))
        row = (place - at).clamp(0, count - 1)
        take = token.unsqueeze(-1).expand(-1, -1, words.shape[-1])
        seen = row.unsqueeze(-1).expand(-1, -1, images.shape[-1])
        embedded = torch.where(inside.unsqueeze(-1), images.to(words.dtype).gather(1, seen), words.gather(1, take))
        wide = torch.where(inside, True, mask.gather(1, token))
        return embedded, wide, torch.where(inside, IGNORED, labels.gather(1, token))

    @torch.inference_mode()
    def write(
        self,
        prompts: Sequence[Tensor],
        images: Tensor,
        *,
        generators: Sequence[torch.Generator] | None,
        stop: Sequence[int],
        longest: int = 1024,
        temperature: float = 0.2,
        top_p: float = 1.0,
    ) -> list[Written]:
        """Answers to prompts (ids (L,) with one IMAGE each) about image features (B,N,width).

        Sampled with a generator for each answer, so that what is beside it in the batch does not matter; without
        generators the most likely token is taken. An answer ends with the first token of `stop`.
        """
        device = images.device
        lengths = [len(ids) for ids in prompts]
        ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(prompts):  # padded on the left, so that all answers begin at one place
            ids[row, -len(prompt) :], mask[row, -len(prompt) :] = prompt, True
        embedded, mask, _ = self.expand(ids.to(device), mask.to(device), images)
        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)] if generators else [])
        if generators and top_p < 1:
            warpers.append(TopPLogitsWarper(top_p))
        cache, fed, new = None, embedded, torch.zeros(len(prompts), 0, dtype=torch.long)
        states: list[Tensor] = []
        going = torch.ones(len(prompts), dtype=torch.bool)
        ends = torch.tensor(list(stop))
        while new.shape[1] < longest and bool(going.any()):
            out = self.language.model(
                inputs_embeds=fed,
                attention_mask=mask,
                position_ids=positions(mask)[:, -fed.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            )
            cache, last = out.past_key_values, out.last_hidden_state[:, -1]
            states.append(last.float().cpu())
            scores = warpers(new, self.language.lm_head(last).float().cpu())
            token = choose(scores, generators)
            new = torch.cat([new, token[:, None]], dim=1)
            going &= ~torch.isin(token, ends)
            fed = self.language.get_input_embeddings()(token[:, None].to(device))
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        every = torch.stack(states, dim=1)
        answers = []
        for row, tokens in enumerate(new):
            stops = torch.isin(tokens, ends).nonzero()
            length = int(stops[0]) + 1 if len(stops) else len(tokens)
            answers.append(Written(tokens[:length], every[row, :length]))
        return answers

    @torch.inference_mode()
    def read(self, prompts: Sequence[Tensor], answers: Sequence[Tensor], images: Tensor) -> list[Tensor]:
        """The states (T,width) that predict the tokens of given answers (T,): one pass in place of writing them anew.

        Prompts (ids (L,) with one IMAGE each) and image features (B,N,width) as for `write`.
        """
        texts = [torch.cat([prompt, answer]) for prompt, answer in zip(prompts, answers, strict=True)]
        ids = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(text) for text in texts])[:, None]
        embedded, mask, _ = self.expand(ids.to(images.device), mask.to(images.device), images)
        states = self.states(embedded, mask).float().cpu()
        begins = [len(prompt) - 2 + images.shape[1] for prompt in prompts]  # the last place of a prompt
        return [row[begin : begin + len(answer)] for row, begin, answer in zip(states, begins, answers, strict=True)]


def positions(mask: Tensor) -> Tensor:
    """The place of each token in its own text, whatever padding stands before it."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def choose(scores: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    """The next tokens (B,) of scores (B,V)."""
    if generators is None:
        return scores.argmax(-1)
    shares = scores.softmax(-1)
    drawn = [torch.multinomial(row, 1, generator=own) for row, own in zip(shares, generators, strict=True)]
    return torch.cat(drawn)
