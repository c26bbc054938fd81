"""Sentences to vectors: any sentence transformer on the disk or in the cache, or a small one without weights."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import simplejson
import torch
import torch.nn.functional as F
from torch import Tensor

WORDS = "words"
"""The encoder that needs no weights."""

PREFERRED = ("all-mpnet-base-v2", "stsb-mpnet-base-v2", "all-MiniLM-L6-v2")
"""Encoders that are worth using when one is at hand: the published choices first, then a small one."""

BATCH_TOKENS = 4096


def installed() -> str:
    """The folder of a real encoder on this machine, else `words`; nothing is fetched.

    Looked for in the local cache of the model hub, and below the folder of unpacked weights that the environment
    variable ACTION_SUITE_WEIGHTS names.
    """
    for name in PREFERRED:
        try:
            return str(_cached(f"sentence-transformers/{name}"))
        except Exception:  # many kinds: not in the cache, no library
            continue
    weights = os.environ.get("ACTION_SUITE_WEIGHTS")
    for recipe in sorted(Path(weights).rglob("modules.json")) if weights else ():  # every sentence transformer has one
        if (recipe.parent / "config.json").is_file():
            return str(recipe.parent)
    return WORDS


def _cached(name: str) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, local_files_only=True))
    if not list(folder.glob("*.safetensors")) + list(folder.glob("*.bin")):
        raise ValueError(f"{folder} holds no weights")
    return folder


def encode(sentences: Sequence[str], encoder: str, *, normalize: bool | None = None) -> Tensor:
    """Vectors (N,D) in float32, one for each sentence; `normalize` overrules what the encoder's own files say.

    `encoder` is `words`, a folder that sentence-transformers or transformers wrote, or a name of a model hub such as
    `all-mpnet-base-v2` (the published choice), which has to be in the local cache or reachable.

    Raises: ValueError when the encoder cannot be had, with what to do.
    """
    if encoder == WORDS:
        return torch.stack([_words(sentence) for sentence in sentences])
    folder = _folder(encoder)
    tokenizer, model = _load(folder)
    pooling, unit = _recipe(folder)
    unit = unit if normalize is None else normalize
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]), reverse=True)
    vectors: dict[int, Tensor] = {}
    with torch.inference_mode():
        for indices in _batches(order, sentences):
            batch = tokenizer([sentences[i] for i in indices], padding=True, truncation=True, return_tensors="pt")
            hidden = model(**batch).last_hidden_state.float()
            pooled = pooling(hidden, batch["attention_mask"])
            vectors.update(zip(indices, F.normalize(pooled, dim=-1) if unit else pooled, strict=True))
    return torch.stack([vectors[index] for index in range(len(sentences))]).clone()


def _batches(order: Sequence[int], sentences: Sequence[str]) -> list[list[int]]:
    """Neighbors in length together, so that little is padded; long sentences make small batches."""
    batches: list[list[int]] = []
    for index in order:
        longest = len(sentences[batches[-1][0]]) // 3 + 3 if batches else 0  # tokens, roughly
        if not batches or (len(batches[-1]) + 1) * longest > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def _folder(encoder: str) -> Path:
    """Where the encoder's files are: the folder itself, or the hub's snapshot of the name."""
    path = Path(encoder).expanduser()
    if path.is_dir():
        return path
    name = encoder if "/" in encoder else f"sentence-transformers/{encoder}"
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name))
    except Exception as error:  # many kinds: no network, no such model, no library
        raise ValueError(
            f"encoder {encoder!r} is no folder, and its name cannot be fetched from a model hub "
            f"({type(error).__name__}); copy the model's folder here and give its path, or use --encoder {WORDS}, "
            "which needs no weights"
        ) from error


def _load(folder: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoModel, AutoTokenizer, logging
    except ImportError as error:
        raise ValueError("sentence encoders need transformers: pip install transformers") from error
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=None).eval()
        return AutoTokenizer.from_pretrained(folder, local_files_only=True), model
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{folder}: no encoder that transformers can open ({reason})") from error


Pooling = Callable[[Tensor, Tensor], Tensor]


def _recipe(folder: Path) -> tuple[Pooling, bool]:
    """How token vectors become one, and whether it gets length 1: what sentence-transformers wrote beside the model."""
    path = folder / "modules.json"
    modules = simplejson.loads(path.read_text()) if path.is_file() else []
    kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    pooling = folder / kinds.get("Pooling", "1_Pooling") / "config.json"
    wishes = simplejson.loads(pooling.read_text()) if pooling.is_file() else {}
    if wishes.get("pooling_mode_cls_token"):
        return lambda hidden, mask: hidden[:, 0], "Normalize" in kinds
    if wishes.get("pooling_mode_max_tokens"):
        return lambda hidden, mask: hidden.masked_fill(mask[..., None] == 0, -math.inf).amax(1), "Normalize" in kinds
    return _mean, "Normalize" in kinds


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weight = mask[..., None].float()
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


def _words(sentence: str, width: int = 768) -> Tensor:
    """The mean direction of the words: each has a fixed one of its own, so sentences are alike by the words they share.

    The same on every machine, and free of weights: for demos and tests.
    """
    directions = []
    for word in sentence.lower().replace("-", " ").split():
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") % 2**63
        directions.append(torch.randn(width, generator=torch.Generator().manual_seed(seed)))
    return F.normalize(torch.stack(directions).sum(0), dim=0)
