"""CLIP's tokenizer from OpenAI's file of merges, plain and compressed, and what the text encoder makes of prompts."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import pytest
import torch

from projects.lego import model
from projects.lego.model import text
from projects.lego.model.text import open_tokenizer
from tests.lego import tiny

PROMPTS = ("pick the", "PICK  the pit!", "", "the " * 90)


def compressed(path: Path) -> Path:
    """The same file as it is published."""
    out = path.with_name(f"{path.name}.gz")
    out.write_bytes(gzip.compress(path.read_bytes()))
    return out


def test_the_compressed_file_is_the_same_tokenizer(home: Path, tmp_path: Path) -> None:
    plain = tmp_path / "bpe_simple_vocab_16e6.txt"
    tiny.write_tokenizer(plain)
    found = {path: open_tokenizer(path) for path in (plain, compressed(plain))}
    one, other = found.values()
    assert len(one) == len(other) == 512 + len(tiny.MERGES) + 2
    for prompt in PROMPTS:
        assert one(prompt).input_ids == other(prompt).input_ids
    start, pick, the, end = one("pick the").input_ids
    assert (start, end) == (len(one) - 2, len(one) - 1)
    assert (pick, the) == (512 + 4, 512 + 1), "the merges are numbered in their order"
    cfg = tiny.configured(home, tmp_path / "run", f"model.tokenizer={compressed(plain)}")
    encoder = model.text_encoder(cfg.model)
    tokens = encoder.tokenize(PROMPTS)
    assert tokens.shape == (4, 77)
    assert tokens[3, -1] == end, "cut, and closed"
    assert torch.equal(encoder.encode(PROMPTS[:1]), encoder(tokens[:1]))


def test_only_as_many_merges_as_the_released_vocabulary_uses(tmp_path: Path) -> None:
    path = tmp_path / "bpe.txt"
    pairs = itertools.product(text._letters(), repeat=2)
    path.write_text("#version\n" + "".join(f"{a} {b}\n" for a, b in itertools.islice(pairs, text.MERGES + 50)))
    assert len(open_tokenizer(compressed(path))) == 49408


def test_what_is_no_tokenizer_is_refused(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "bpe.txt"
    path.write_text("#version\none two three\n")
    with pytest.raises(ValueError, match=r"bpe\.txt\.gz: expected two symbols a line after the first"):
        open_tokenizer(compressed(path))
    whole = compressed(path).read_bytes()
    for broken in (whole[:-12], b"no archive"):
        (tmp_path / "broken.gz").write_bytes(broken)
        with pytest.raises(ValueError, match=r"broken\.gz: damaged, or no file of merges"):
            open_tokenizer(tmp_path / "broken.gz")
    with pytest.raises(ValueError, match=r"model\.tokenizer=.*nowhere: neither a folder with CLIP's tokenizer"):
        open_tokenizer(tmp_path / "nowhere")
    tiny.write_tokenizer(path)
    cfg = tiny.configured(home, tmp_path / "run", f"model.tokenizer={path}", "model.vocabulary=512")
    with pytest.raises(ValueError, match=r"its tokens go up to 518, the text encoder knows 512"):
        model.text_encoder(cfg.model).tokenize(["pick"])


@pytest.mark.golden
def test_the_published_file_numbers_words_as_openai_does(pretrained: Path) -> None:
    """Ids of OpenAI's own tokenizer, which lowers, cleans blanks and splits digits one by one."""
    found = list(pretrained.rglob("bpe_simple_vocab_16e6.txt.gz"))
    if not found:
        pytest.skip("needs bpe_simple_vocab_16e6.txt.gz of the package open-clip-torch, see docs/data.md")
    tokenizer = open_tokenizer(found[0])
    assert len(tokenizer) == 49408
    expected = {
        "a diagram": [320, 22697],
        "  Opens   the DRAWER  (slowly) ": [4801, 518, 23219, 263, 9568, 264],
        "#C C washes 10 plates!": [258, 322, 322, 38950, 272, 271, 11485, 256],
        "The person's left hand picks up 2": [518, 2533, 568, 1823, 2463, 8551, 705, 273],
    }
    for words, ids in expected.items():
        assert tokenizer(words).input_ids == [49406, *ids, 49407]
