"""From logits to alternative futures: S sequences of Z verbs and of Z nouns, of which the k-th go together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from projects.lta_memvit.config import EvalConfig


class Futures(NamedTuple):
    """Class ids, int64 (B, S, Z) each; a single one is the likeliest class at every position."""

    verb: Tensor
    noun: Tensor


def draw(
    verb: Tensor, noun: Tensor, ids: Sequence[str], cfg: EvalConfig, generator: torch.Generator | None = None
) -> Futures:
    """`cfg.sequences` futures of each sample, every position and head on its own, as the baseline does.

    sampling="id": the random numbers of a sample come from `cfg.seed` and its id, so that neither batches nor processes
    change them. sampling="reference": torch's multinomial draws from `generator`, for verbs and then nouns, one future
    of the whole batch after the other: with the seed, batches and order of the original they are the original's.

    Shapes: verb (B, Z, V), noun (B, Z, K), logits.
    """
    if cfg.sequences == 1:
        return Futures(verb.argmax(-1)[:, None].cpu(), noun.argmax(-1)[:, None].cpu())
    shares = [_shares(logits, cfg) for logits in (verb, noun)]
    if cfg.sampling == "reference":
        return Futures(*(_multinomial(share, cfg.sequences, generator) for share in shares))
    chance = torch.stack([_chance(cfg, name, verb.shape[1]) for name in ids])
    return Futures(*(_inverse(share, chance[:, head]) for head, share in enumerate(shares)))


def prior(counts: Sequence[Sequence[int]], ids: Sequence[str], future: int, cfg: EvalConfig) -> Futures:
    """Futures of windows that could not be looked at: drawn as often as a class occurs, by id.

    Args: counts of every verb and of every noun; where all are 0, classes are equally likely.
    """
    logits = [torch.tensor(values, dtype=torch.float64) for values in counts]
    logits = [(values if values.any() else values + 1).log().expand(len(ids), future, -1) for values in logits]
    verb, noun = logits
    return draw(verb, noun, ids, cfg.model_copy(update={"sampling": "id", "temperature": 1.0, "top_p": 1.0}))


def _shares(logits: Tensor, cfg: EvalConfig) -> Tensor:
    """Probabilities (B, Z, C) on the CPU of the classes that may be drawn, 0 for the others."""
    scores = logits.cpu().double()
    if cfg.sampling == "reference":  # single precision, and normalized before its softmax, as torch's Categorical
        scores = logits.cpu().float().log_softmax(-1)
    shares = (scores / cfg.temperature).softmax(-1)
    if cfg.top_p < 1:
        ranked, order = shares.sort(dim=-1, descending=True, stable=True)
        spare = ranked.cumsum(-1) - ranked >= cfg.top_p  # the classes before it are enough
        shares = shares.masked_fill(torch.zeros_like(spare).scatter(-1, order, spare), 0.0)
    return shares


def _chance(cfg: EvalConfig, name: str, positions: int) -> Tensor:
    """Uniform numbers of a sample, float64 (2, S, Z)."""
    rng = random.Random(f"{cfg.seed}/{name}")
    values = [rng.random() for _ in range(2 * cfg.sequences * positions)]
    return torch.from_numpy(np.array(values)).view(2, cfg.sequences, positions)


def _inverse(shares: Tensor, chance: Tensor) -> Tensor:
    """The class in whose part of [0, 1) each number falls: shares (B, Z, C), chance (B, S, Z) -> (B, S, Z)."""
    upper = shares.cumsum(-1)
    place = chance.transpose(1, 2) * upper[..., -1:]  # rounding leaves a sum that is not quite 1
    found = torch.searchsorted(upper.contiguous(), place.contiguous(), right=True)
    return found.clamp(max=shares.shape[-1] - 1).transpose(1, 2).contiguous()


def _multinomial(shares: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    rows = shares.flatten(0, -2)
    draws = [torch.multinomial(rows, 1, True, generator=generator).view(shares.shape[:-1]) for _ in range(count)]
    return torch.stack(draws, 1)
