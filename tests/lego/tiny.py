"""What the tests of the diffusion stage share: networks of a golden case's size, tiny data, tiny weights."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core import config, demo, run
from core.run import Run
from projects.lego import data, model
from projects.lego.config import Config, ModelConfig
from projects.lego.model import Lego, layouts
from tests.support import Case, fill

Shapes = Mapping[str, Any]


def sized(shapes: Shapes, **more: Any) -> ModelConfig:
    """The configuration of the networks whose official names and shapes a case lists; heads are always eight."""
    found: dict[str, Any] = {}

    def size(name: str, axis: int) -> int:
        return int(shapes[name][0][axis])

    unet = "model.diffusion_model."
    if (first := unet + "input_blocks.0.0.weight") in shapes:
        found["width"] = size(first, 0)
        tops = [f"{unet}input_blocks.{3 * level + 1}.0.in_layers.2.weight" for level in range(4)]
        found["levels"] = tuple(size(name, 0) // found["width"] for name in tops)
        found["context"] = size(unet + "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1)
    if (first := "first_stage_model.encoder.conv_in.weight") in shapes:
        found["vae_width"] = size(first, 0)
    if "projection_img.weight" in shapes:
        found["context"], found["feature_width"] = shapes["projection_img.weight"][0]
    return ModelConfig(**found, **more)


def unfilled(cfg: ModelConfig, kind: str) -> Any:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return {"lego": model.build, "vae": model.autoencoder, "text": model.text_encoder}[kind](cfg)


def parts(case: Case, salt: str = "") -> layouts.Parts:
    """The weights of a case, as if its official checkpoint had been read."""
    return layouts.split(case.weights(salt), case.path)


def filled_unet(case: Case, cfg: ModelConfig, *, average: str | None = None, salt: str = "") -> Lego:
    """A Lego whose UNet is filled tensor by tensor, so that only one copy of it exists; with `average` as salt, the
    moving average's values."""
    lego = unfilled(cfg, "lego")
    shapes = case.json("keys.json")
    state = {}
    for name, value in lego.unet.state_dict().items():
        official = "model.diffusion_model." + layouts.names.compvis_unet(name)
        shape, dtype = shapes[official]
        assert list(value.shape) == shape, name
        state[name] = torch.as_tensor(fill.array(official, shape, dtype, salt if average is None else average))
    lego.unet.load_state_dict(state, assign=True)
    if lego.conditioner.state_dict():
        lego.conditioner.to_empty(device="cpu")
        layouts.load_conditioner(lego.conditioner, conditioning(case, salt))
    return lego.eval()


def conditioning(case: Case, salt: str = "") -> layouts.Parts:
    """The conditioning modules of a case alone."""
    shapes = {
        name: value for name, value in case.json("keys.json").items() if name.startswith(layouts.names.CONDITIONER)
    }
    return layouts.split(fill.state_dict(shapes, salt), case.path)


def states(text: str, tokens: int = 77, width: int = 768) -> Tensor:
    """The stand-in for CLIP's states of a prompt that the cases use: (1, tokens, width), never salted."""
    scale = np.sqrt(width)
    return torch.from_numpy((fill.array("text:" + text, (tokens, width)) * np.float32(scale)).astype(np.float32))[None]


def vae_parts(case: Case, salt: str = "") -> layouts.Parts:
    """The autoencoder of a case alone."""
    shapes = {name: value for name, value in case.json("keys.json").items() if name.startswith(layouts.names.VAE)}
    return layouts.split(fill.state_dict(shapes, salt), case.path)


# ----------------------------------------------------------------------------------------------- tiny data and weights

MERGES = ["t h", "th e</w>", "p i", "pi c", "pic k</w>"]
NETWORKS = (
    "model.width=32", "model.levels=[1,2]", "model.blocks=1", "model.heads=4", "model.context=32",
    "model.feature_width=16", "model.vae_width=32", "model.vae_levels=[1,2]", "model.text_layers=1",
    "model.text_heads=2", f"model.vocabulary={512 + len(MERGES) + 2}", "data.size=[32,32]",
)  # fmt: skip


def write_dataset(root: Path, *, dataset: str = "ego4d", train: int = 6, val: int = 3, width: int = 16) -> None:
    """The released layout with pairs of pictures that differ by what the prompt says; two actions a clip."""
    folder = {"ego4d": "ego4d.fho", "epickitchen": "epickitchen"}[dataset]
    vllm = data.RELEASED[dataset].vllm
    sizes: dict[str, dict[str, int]] = {}
    for split, count in (("train", train), ("val", val)):
        entries: dict[str, dict[str, dict[str, str]]] = {}
        for number in range(count):
            clip, action = f"{dataset}-{split}-{number // 2}", str(number % 2)
            rng = random.Random(f"{dataset}/{split}/{number}")
            before, after, sentence = demo.image_pair(rng, size=(36, 48))
            names = [f"{clip}/{action}/pre_{number:04d}_{time}.jpg" for time in (0, 1)]
            for name, picture in zip(names, (before, after), strict=True):
                path = root / "EgoGen" / folder / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture.numpy()).save(path, quality=95)
            generator = np.random.default_rng(rng.getrandbits(32))
            for kind, rows in (("image", 4), ("text", 5 + number)):
                path = root / dataset / f"vllm_{kind}_feature" / vllm / split / Path(names[0]).with_suffix(".npy")
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, generator.standard_normal((rows, width)).astype(np.float16))
            entries.setdefault(clip, {})[action] = {
                "image_0": names[0],
                "image_1": names[1],
                "action": f"#C C {sentence}",
                "llava_forecast_finetune": f"The person {sentence}.",
            }
            sizes[clip] = {"width": 480, "height": 360}
        (root / f"{dataset}_{split}.json").write_text(json.dumps(entries))
    (root / f"{dataset}_metadata.json").write_text(json.dumps(sizes))


def write_tokenizer(path: Path) -> None:
    """A file of merges as OpenAI publishes its own, with five of them."""
    path.write_text("\n".join(["#version: tiny", *MERGES]) + "\n")


def write_stable_diffusion(path: Path, *, seed: int = 0, channels: int = 4) -> None:
    """A checkpoint as Stable Diffusion 1.5 has it, of the tiny networks: CompVis names, four input channels."""
    torch.manual_seed(seed)
    cfg = config.load(Config, None, [*NETWORKS, "model.features=none"])
    lego, vae, text = model.build(cfg.model), model.autoencoder(cfg.model), model.text_encoder(cfg.model)
    for parameter in lego.parameters():  # fresh ones end in small numbers; let all parts speak
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0 if parameter.mean() > 0.5 else 0.0, 0.1)
    state = layouts.official_state(lego, average=None, vae=vae, text=text, schedule=model.Schedule(), blocks=1)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    state[first] = state[first][:, :channels].clone()
    torch.save({"state_dict": state, "global_step": 7}, path)


def settings(root: Path, out: Path, *more: str) -> list[str]:
    """The command line of a tiny run on the data and weights below `root`: 3 batches an epoch, 2 epochs."""
    return [
        *NETWORKS, f"data.root={root / 'data'}", f"run.out={out}", "run.device=cpu", "run.log_every=1",
        f"model.init={root / 'sd.ckpt'}", f"model.tokenizer={root / 'merges.txt'}",
        f"cache.folder={out.parent / 'cache'}", "loader.batch_size=2", "loader.workers=0", "optim.epochs=2",
        "optim.accumulate=1", "optim.lr=1e-3",
        "run.eval_every=1", "show.every=0", "sample.steps=3", "sample.batch_size=2", *more,
    ]  # fmt: skip


def configured(root: Path, out: Path, *more: str) -> Config:
    return config.load(Config, None, settings(root, out, *more))


@contextmanager
def started(cfg: Config) -> Iterator[Run]:
    with run.start(cfg, cfg.run, visit=True) as job:
        yield job
