"""Scores of a folder of frames through the real command, with networks made small or from nothing."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from core.metrics import psnr
from projects.lego import eval as evaluation
from projects.lego.metrics import blip, catalog, egovlp, networks, pixels
from projects.lego.metrics.places import SOURCES, MissingWeightsError, find
from projects.lego.metrics.scores import Batch, Embeddings, Memory

SIZE = (24, 40)


def picture(path: Path, seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, size=(*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path.with_suffix(".png"))
    path.with_suffix(".png").rename(path)
    return noise


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Three pairs in the released layout, and generated frames that come nearer to the true ones one by one."""
    return write_release(tmp_path, 3)


def write_release(tmp_path: Path, count: int) -> Path:
    root = tmp_path / "data"
    entries: dict[str, dict] = {}
    for number in range(count):
        clip, action = f"clip{number // 2}", f"action{number}"
        source, target = (f"{clip}/{action}/{frame}.jpg" for frame in ("0001", "0009"))
        picture(root / "EgoGen" / "ego4d.fho" / "val" / source, number)
        true = picture(root / "EgoGen" / "ego4d.fho" / "val" / target, 10 + number)
        share = 0.5 + 0.2 * number * 3 / count
        mixed = (true * share + 100 * (1 - share)).astype(np.uint8)
        path = tmp_path / "frames" / "images" / target
        path.parent.mkdir(parents=True)
        Image.fromarray(mixed).save(path.with_suffix(".png"))
        path.with_suffix(".png").rename(path)
        words = {"action": f"#C C turns {number}", "llava_forecast_finetune": f"the hand turns {number}"}
        entries.setdefault(clip, {})[action] = {"image_0": source, "image_1": target, **words}
    (root / "ego4d_val.json").write_text(json.dumps(entries))
    return tmp_path


def run(folder: Path, *arguments: str) -> dict[str, float]:
    return evaluation.main([
        f"run.out={folder / 'run'}", f"data.root={folder / 'data'}", f"eval.images={folder / 'frames'}",
        f"cache.folder={folder / 'cache'}", f"eval.weights={folder / 'weights'}", "loader.workers=0", *arguments,
    ])  # fmt: skip


def test_scores_without_any_network(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (release / "frames" / "metric").mkdir()
    (release / "frames" / "metric" / "metric.json").write_text('{"fid": 12.5, "psnr": 1.0}')
    numbers = run(release, "eval.baseline=true", "eval.batch_size=2")
    out = release / "frames" / "metric"
    assert list(numbers) == ["psnr"]
    values = []
    for path in sorted((release / "frames" / "images").rglob("*.jpg")):
        true = release / "data" / "EgoGen" / "ego4d.fho" / "val" / path.relative_to(release / "frames" / "images")
        pair = [torch.from_numpy(np.array(Image.open(p))).permute(2, 0, 1)[None] / 255 for p in (path, true)]
        values.append(float(psnr(*pair)))
    assert values == sorted(values)
    assert numbers["psnr"] == pytest.approx(np.mean(values), abs=1e-6)
    assert json.loads((out / "metric.json").read_text()) == {"fid": 12.5, "psnr": pytest.approx(numbers["psnr"])}
    rows = list(csv.DictReader((out / "scores.csv").open()))
    assert [float(row["psnr"]) for row in rows] == pytest.approx(values, rel=1e-5)
    result = json.loads((out / "results.json").read_text())["scores"]["psnr"]
    assert result["interval_95"][0] < numbers["psnr"] < result["interval_95"][1]
    assert result["source_frame"] < numbers["psnr"]
    errors = capsys.readouterr().err
    page = (out / "report.html").read_text()
    assert "the hand turns 2" in page
    assert page.count("<img") == 9
    for name in ("pt_inception-2015-12-05-6726825d.pth", "clip-vit-large-patch14", "egovlp.pth"):
        assert f"{release / 'weights' / name} is missing: put it there" in errors


def test_a_score_asked_for_by_name_needs_its_weights(release: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"alexnet-owt-7be5be79\.pth is missing: put it there \(torchvision"):
        run(release, "eval.metrics=[psnr,lpips_alex]")
    with pytest.raises(ValueError, match="no metric is called 'ssim'; there are fid, psnr"):
        run(release, "eval.metrics=[ssim]")


def test_missing_and_unequal_frames_are_named(release: Path) -> None:
    path = release / "frames" / "images" / "clip1" / "action2" / "0009.jpg"
    picture(path, 5, (24, 41))
    with pytest.raises(ValueError, match=r"ego4d/val/clip1/action2: the generated frame is 41x24, the true one 40x24"):
        run(release)
    path.unlink()
    with pytest.raises(ValueError, match=r"action2/0009\.jpg: no such file; 1 of 3 frames are missing"):
        run(release)
    with pytest.raises(ValueError, match="generate the frames first"):
        run(release, f"eval.images={release / 'nowhere'}")


def weights(folder: Path) -> None:
    """Files with official names whose networks have random weights."""
    folder.mkdir()
    torch.manual_seed(0)
    net = networks.FidInception().net
    torch.save(
        net.state_dict() | {"fc.weight": torch.zeros(1008, 2048)}, folder / "pt_inception-2015-12-05-6726825d.pth"
    )
    torch.save(torchvision.models.squeezenet1_1().state_dict(), folder / catalog.LPIPS_FILES["squeeze"])


def test_networks_from_files_and_what_they_saw_is_kept(release: Path) -> None:
    weights(release / "weights")
    arguments = ["eval.metrics=[fid,lpips_squeeze]", "eval.batch_size=2"]
    numbers = run(release, *arguments)
    assert set(numbers) == {"fid", "lpips_squeeze", "lpips_squeeze_corrected"}
    assert numbers["fid"] > 0
    (kept,) = (release / "cache" / "metrics").glob("ego4d-fid-*.npz")
    with np.load(kept) as file:
        assert file["embedding"].shape == (3, 2048)
        assert sorted(file["id"]) == [f"ego4d/val/clip{k // 2}/action{k}" for k in range(3)]
    again = run(release, *arguments, "eval.batch_size=3")
    assert again == pytest.approx(numbers, rel=1e-5)


SMALL = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "vocab_size": 30522, "max_position_embeddings": 64}
KNOWN = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "picture", "of", "the", "hand", "turns", *"0123456789"]
WORDS = [*KNOWN, *(f"word{number}" for number in range(len(KNOWN), 30522))]
OFFICIAL = [
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"visual_encoder.blocks.\1.norm\2."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"visual_encoder.blocks.\1.attn.qkv."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual_encoder.blocks.\1.attn.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"visual_encoder.blocks.\1.mlp."),
]
"""From the names of transformers to those of BLIP's files."""


def small_blip(size: str) -> BlipConfig:
    """The captioners of `blip.config`, narrow; the large one has another width."""
    width = {"base": 32, "large": 48}[size]
    vision = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 384, "patch_size": 96, "layer_norm_eps": 1e-6}  # fmt: skip
    text = {"vocab_size": 30524, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 64, "encoder_hidden_size": width}  # fmt: skip
    return BlipConfig(vision_config=vision, text_config=text)


def tokenizer_folder(folder: Path, kind: str) -> None:
    """What a hub folder of a tokenizer comes to."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))


def caption_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of EgoVLP and BLIP in their official layouts, folders of tokenizers and of CLIP; all networks are small."""
    plain = egovlp.EgoVLP
    monkeypatch.setattr(egovlp, "EgoVLP", lambda frames: plain(frames, width=32, depth=1, heads=2, text=SMALL))
    monkeypatch.setattr(blip, "config", small_blip)
    folder.mkdir()
    torch.manual_seed(1)
    towers = egovlp.EgoVLP(4)
    for parameter in towers.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {f"module.{name}": value for name, value in towers.state_dict().items()}
    torch.save({"arch": "FrozenInTime", "epoch": 3, "state_dict": state}, folder / "egovlp.pth")
    for size, file in (("base", "model_base_caption_capfilt_large.pth"), ("large", "model_large_caption.pth")):
        net = BlipForConditionalGeneration(small_blip(size))
        for parameter in net.parameters():
            if parameter.ndim > 1:  # norms as they are, so that the picture is heard
                torch.nn.init.normal_(parameter, std=0.5)
        given = {}
        for name, value in net.state_dict().items():
            for pattern, official in OFFICIAL:
                name = re.sub(pattern, official, name)
            given[name] = value
        torch.save({"model": given}, folder / file)
    tokenizer_folder(folder / "bert-base-uncased", "bert")
    tokenizer_folder(folder / "distilbert-base-uncased", "distilbert")
    clip = CLIPVisionModelWithProjection(
        CLIPVisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    )
    clip.save_pretrained(folder / "clip-vit-large-patch14")


def test_captions_and_videos_from_official_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All scores of networks that look and read, through the command; what lacks weights is named, the rest runs."""
    folder = write_release(tmp_path, 9)
    caption_weights(folder / "weights", monkeypatch)
    (folder / "weights" / "model_large_caption.pth").rename(folder / "aside")
    numbers = run(folder, "eval.batch_size=4")
    kinds = ("psnr", "clip_image_sim", "egovlp_image_sim", "egovlp_plus_image_sim", "blip_base_egovlp_sim")
    assert set(numbers) == set(kinds)
    errors = capsys.readouterr().err
    assert "blip_large_egovlp_sim is left out: " in errors
    assert f"{folder / 'weights' / 'model_large_caption.pth'} is missing: put it there" in errors
    assert "fid is left out" in errors
    out = folder / "frames" / "metric"
    written = json.loads((out / "blip.json").read_text())
    assert not (out / "blip-l.json").exists()
    assert [len(actions) for actions in written.values()] == [2, 2, 2, 2, 1]
    # The same by hand: the captioner's caption and the description, read by the text tower.
    writer = blip.Captions(
        blip.captioner(folder / "weights" / "model_base_caption_capfilt_large.pth", "base"),
        folder / "weights" / "bert-base-uncased",
    )
    towers = egovlp.load(folder / "weights" / "egovlp.pth", 4)
    tokenizer = AutoTokenizer.from_pretrained(folder / "weights" / "distilbert-base-uncased")
    rows = {(row["clip"], row["action"]): row for row in csv.DictReader((out / "scores.csv").open())}
    cosines = []
    for number in range(9):
        clip, action = f"clip{number // 2}", f"action{number}"
        image = torch.from_numpy(np.array(Image.open(folder / "frames" / "images" / clip / action / "0009.jpg")))
        (caption,) = writer([image])
        assert written[clip][action] == caption
        with torch.inference_mode():
            pair = [towers.embed_text(**text_inputs(tokenizer(text, return_tensors="pt")))
                    for text in (caption, f"the hand turns {number}")]  # fmt: skip
        cosines.append(float(torch.nn.functional.cosine_similarity(*pair)))
        assert float(rows[clip, action]["blip_base_egovlp_sim"]) == pytest.approx(cosines[-1], abs=1e-4)
    assert numbers["blip_base_egovlp_sim"] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert len(set(written["clip0"].values()) | set(written["clip1"].values())) > 1, "captions follow the pictures"
    assert numbers["egovlp_plus_image_sim"] > numbers["egovlp_image_sim"], "half of both clips is the same frame"
    page = Grid()
    page.feed((out / "report.html").read_text())
    assert len(page.captions) == 9
    assert page.pictures == 27
    assert page.has_filter
    assert page.heads[:3] == ["source", "generated", "true"]
    for number, caption in enumerate(page.captions):
        for words in (f"#C C turns {number}", f"the hand turns {number}", f"action{number}", "psnr", "blip_base"):
            assert words in caption
    # The large captioner comes later: its score joins the others.
    (folder / "aside").rename(folder / "weights" / "model_large_caption.pth")
    more = run(folder, "eval.metrics=[blip_large_egovlp_sim]")
    kept = json.loads((out / "metric.json").read_text())
    assert kept == pytest.approx(numbers | more)
    assert json.loads((out / "blip-l.json").read_text()).keys() == written.keys()


def text_inputs(tokens: Any) -> dict[str, torch.Tensor]:
    return {"ids": tokens["input_ids"], "mask": tokens["attention_mask"]}


class Grid(HTMLParser):
    """What a browser finds in the grid of a report."""

    def __init__(self) -> None:
        super().__init__()
        self.captions: list[str] = []
        self.heads: list[str] = []
        self.pictures, self.has_filter = 0, False
        self._into: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.pictures += tag == "img" and str(given["src"]).startswith("data:image/")
        self.has_filter |= tag == "input" and given.get("class") == "filter" and "caption" in str(given["placeholder"])
        self._into = {("figcaption", None): self.captions, ("span", "head"): self.heads}.get((tag, given.get("class")))

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._into = None


def test_memory_computes_only_what_it_does_not_know(tmp_path: Path) -> None:
    asked = []

    def embed(batch: Batch) -> torch.Tensor:
        asked.append(batch.id)
        return torch.tensor([[float(name)] for name in batch.id])

    def batch(*ids: str) -> Batch:
        return Batch("ego4d", list(ids), [], [], [], [])

    np.savez(tmp_path / "known.npz", id=np.array(["1", "2"]), embedding=np.array([[1.0], [2.0]], np.float32))
    memory = Memory(tmp_path / "known.npz")
    assert memory(batch("2", "1"), embed).tolist() == [[2.0], [1.0]]
    assert memory(batch("3", "1"), embed).tolist() == [[3.0], [1.0]]
    assert memory(batch("3"), embed).tolist() == [[3.0]]
    assert asked == [["3", "1"]]
    assert Memory(tmp_path / "absent.npz").known == {}


def test_a_distance_of_sets_is_undefined_for_one_frame() -> None:
    score = Embeddings("fid", lambda b: torch.zeros(1, 2), lambda b: torch.zeros(1, 2), sets=True)
    numbers, each = score.conclude({"fid:answer": np.zeros((1, 2)), "fid:truth": np.zeros((1, 2))})
    assert np.isnan(numbers["fid"])
    assert each == {}


def test_epic_frames_off_by_a_pixel_are_resized() -> None:
    image, true = torch.zeros(4, 8, 3, dtype=torch.uint8), torch.zeros(4, 9, 3, dtype=torch.uint8)
    batch = Batch("epickitchen", ["x"], [image], [true], [true], [""])
    assert batch.matched(batch.target)[0].shape == (3, 4, 9)


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (30, 30), (31, 64)])
def test_the_central_square(height: int, width: int) -> None:
    """Against torchvision, whose tensor path the published numbers used, antialiasing off."""
    image = torch.rand(3, height, width)
    expected = torchvision.transforms.functional.center_crop(
        torchvision.transforms.functional.resize(image, 20, antialias=False), [20, 20]
    )
    assert torch.equal(pixels.cropped(image, 20), expected)


def test_every_place_is_explained(tmp_path: Path) -> None:
    for name in SOURCES:
        with pytest.raises(MissingWeightsError, match="put it there"):
            find(tmp_path, name)
    assert {*catalog.LPIPS_FILES.values(), *catalog.EGOVLP_FILES.values()} <= SOURCES.keys()


def test_a_frame_of_one_time_sees_only_its_own_patches_and_the_class_token() -> None:
    """Divided attention: patches of one frame reach another only through time at their place, or the class token."""
    torch.manual_seed(0)
    attention = egovlp.DividedAttention(16, 2, "space")
    tokens = torch.randn(1, 1 + 3 * 4, 16)
    changed = tokens.clone()
    changed[:, 1 + 4 : 1 + 8] += 1  # the second frame
    before, after = attention(tokens, 3), attention(changed, 3)
    assert torch.allclose(before[:, 1:5], after[:, 1:5], atol=1e-6)
    assert torch.allclose(before[:, 9:], after[:, 9:], atol=1e-6)
    assert not torch.allclose(before[:, 5:9], after[:, 5:9], atol=1e-3)
    assert not torch.allclose(before[:, 0], after[:, 0], atol=1e-3)
    moved = egovlp.DividedAttention(16, 2, "time")
    before, after = moved(tokens, 3), moved(changed, 3)
    assert not torch.allclose(before[:, 1:5], after[:, 1:5], atol=1e-4)


def test_temporal_positions_are_cut_or_followed_by_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(frames: int) -> egovlp.EgoVLP:
        return plain(frames, width=32, depth=1, heads=2, text=SMALL)

    plain = egovlp.EgoVLP
    saved = small(4)
    torch.nn.init.normal_(saved.video_model.temporal_embed)
    monkeypatch.setattr(egovlp, "EgoVLP", small)
    longer = egovlp.load(dict(saved.state_dict()), 6).video_model.temporal_embed
    assert torch.equal(longer[:, :4], saved.video_model.temporal_embed)
    assert not longer[:, 4:].any()
    assert torch.equal(
        egovlp.load(dict(saved.state_dict()), 2).video_model.temporal_embed, saved.video_model.temporal_embed[:, :2]
    )
