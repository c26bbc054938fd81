"""CLIP's text encoder and its tokenizer: prompts to the states that Stable Diffusion attends to."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2  # how many lines of OpenAI's file the released vocabulary uses


class TextEncoder(nn.Module):
    """Prompts -> last hidden states behind the final norm, (B, 77, D), padding included and never masked."""

    def __init__(
        self, *, width: int = 768, layers: int = 12, heads: int = 12, vocabulary: int = 49408, tokenizer: str = ""
    ) -> None:
        super().__init__()
        self.model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                num_attention_heads=heads, max_position_embeddings=TOKENS, hidden_act="quick_gelu",
                bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
            )
        )  # fmt: skip
        self.source = tokenizer
        self._tokenizer: CLIPTokenizer | None = None
        self.requires_grad_(False).eval()

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """Opened when first needed: weights can be looked at without it."""
        if self._tokenizer is None:
            self._tokenizer = open_tokenizer(self.source)
        return self._tokenizer

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token numbers (B, 77): cut and padded to the full length, as the reference does."""
        found: Tensor = self.tokenizer(
            list(prompts), truncation=True, max_length=TOKENS, padding="max_length", return_tensors="pt"
        )["input_ids"]
        limit = self.model.config.vocab_size
        if int(found.max()) >= limit:
            raise ValueError(f"{self.source}: its tokens go up to {int(found.max())}, the text encoder knows {limit}")
        return found

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 77) -> (B, 77, D)."""
        states: Tensor = self.model(input_ids=tokens).last_hidden_state
        return states

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """(B, 77, D) on the encoder's device."""
        states: Tensor = self(self.tokenize(prompts).to(self.model.device))
        return states


def open_tokenizer(source: str | Path) -> CLIPTokenizer:
    """CLIP's tokenizer from a folder, a hub name, or OpenAI's file of merges (bpe_simple_vocab_16e6.txt, also .gz).

    Raises: ValueError naming the ways to get it.
    """
    path = Path(source)
    if path.is_file():
        return _from_merges(path)
    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"model.tokenizer={source}: neither a folder with CLIP's tokenizer, nor bpe_simple_vocab_16e6.txt.gz "
            f"(of the package open-clip-torch), nor a hub name that can be reached ({str(error).splitlines()[0]})"
        ) from None
    return tokenizer


def _from_merges(path: Path) -> CLIPTokenizer:
    """The vocabulary is the bytes, the bytes at the end of a word, the merges in their order, and two marks."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            lines = file.read().splitlines()[1 : MERGES + 1]  # the first line is a version
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise ValueError(f"{path}: damaged, or no file of merges ({error}); get it again") from None
    merges = [tuple(line.split()) for line in lines if line.strip()]
    if not all(len(merge) == 2 for merge in merges):
        raise ValueError(f"{path}: expected two symbols a line after the first, as in bpe_simple_vocab_16e6.txt")
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges), START, END]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=merges)


def _letters() -> list[str]:
    """A printable letter for each byte, in the order of the vocabulary: printable bytes first, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [*map(chr, printable), *(chr(256 + number) for number in range(others))]
