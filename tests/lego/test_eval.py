"""Scores of a folder of frames through the real command, with networks made small or from nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from core.metrics import psnr
from projects.lego import eval as evaluation
from projects.lego.metrics import catalog, egovlp, networks, pixels
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
    root = tmp_path / "data"
    entries: dict[str, dict] = {}
    for number in range(3):
        clip, action = f"clip{number // 2}", f"action{number}"
        source, target = (f"{clip}/{action}/{frame}.jpg" for frame in ("0001", "0009"))
        picture(root / "EgoGen" / "ego4d.fho" / "val" / source, number)
        true = picture(root / "EgoGen" / "ego4d.fho" / "val" / target, 10 + number)
        mixed = (true * (0.5 + 0.2 * number) + 100 * (0.5 - 0.2 * number)).astype(np.uint8)
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


SMALL = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "vocab_size": 50, "max_position_embeddings": 16}


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
