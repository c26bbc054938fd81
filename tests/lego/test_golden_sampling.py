"""Guidance, solver and the whole way from a frame to the written picture give the numbers of the official code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from projects.lego import model, sampler
from projects.lego.generate import finish
from projects.lego.model import Condition, Conditioner, Schedule, layouts
from tests.lego import tiny
from tests.support import Case, Parity, cases

pytestmark = pytest.mark.golden
PROMPT = "pick up the knife"


def by_name(case: Case) -> str:
    return case.path.name


def given_noise(case: Case, shape: tuple[int, ...], salt: str = "") -> Callable[[], Tensor]:
    """The start, then the noise of step 0, 1, ... of a case."""
    names = iter(["noise.init", *(f"noise.{step}" for step in range(1000))])
    return lambda: case.noise(next(names), shape, salt)


@pytest.mark.parametrize("case", cases("lego", "euler_ancestral*"), ids=by_name)
def test_guidance_and_trajectory(case: Case, parity: Parity) -> None:
    expected, schedule = case.expected, Schedule()
    shape = (1, 4, 8, 8)
    contexts = [30 * case.noise(name, (1, 410, 768)) for name in ("in.ctx", "in.null")]
    context = torch.cat([contexts[0], contexts[1], contexts[1]])
    source = case.noise("in.c_concat", shape)
    sources = torch.cat([source, source, torch.zeros(shape)])

    def toy(latents: Tensor, times: Tensor) -> Tensor:
        words = torch.tanh(context.mean((1, 2)))[:, None, None, None]
        return 0.9 * latents + 0.2 * words + 0.3 * sources * times[:, None, None, None] / 1000

    both, image, none = (case.noise(f"cfg.{name}", expected["cfg"].shape) for name in ("cond", "img", "unc"))
    parity.check("cfg", sampler.guide(both, image, none, 7.5, 1.5), expected["cfg"], atol=1e-5)
    for key in [key for key in expected if key.startswith("final_")]:
        steps = int(key.removeprefix("final_"))
        path: list[tuple[Tensor, Tensor]] = []
        plain = sampler.guided(toy, schedule, 7.5, 1.5)

        def denoise(latents: Tensor, sigma: Tensor, plain=plain, path=path) -> Tensor:
            found = plain(latents, sigma)
            path.append((latents, found))
            return found

        noise, sigmas = given_noise(case, shape), schedule.sigmas(steps)
        final = sampler.euler_ancestral(denoise, noise() * sigmas[0], sigmas, noise)
        parity.check(key, final, expected[key], atol=1e-4 * expected[key].std())
        assert len(path) == steps
        for number, name in enumerate((f"x_{steps}", f"denoised_{steps}")):
            if name in expected:
                found = torch.stack([pair[number] for pair in path])
                parity.check(name, found, expected[name], atol=1e-4 * expected[name].std())


@pytest.mark.parametrize("shortcut", [True, False], ids=["shortcut", "plain"])
@pytest.mark.parametrize("case", cases("lego", "tiny_pipeline*"), ids=by_name)
def test_from_a_frame_to_the_written_picture(case: Case, shortcut: bool, parity: Parity) -> None:
    """With the moving average of an official checkpoint; the raw weights must not matter."""
    parity.case = f"{case.path.name}{'' if shortcut else ', plain'}"
    expected = case.expected
    text_only = "text_only" in case.path.name
    salt = "t" if text_only else ""
    cfg = tiny.sized(case.json("keys.json"), features="none" if text_only else "both")
    lego = tiny.filled_unet(case, cfg, average=f"ema{salt}", salt=salt)
    vae = model.autoencoder(cfg)
    layouts.load_vae(vae, tiny.vae_parts(case, salt))
    frame = (0.5 * case.noise("in.image_0", (3, 64, 64), salt)).clamp(-1, 1)
    image_features, text_features = None, None
    if not text_only:
        image_features = case.noise("in.llava_image", (256, 5120), salt)[None]
        text_features = case.noise("in.llava_text", (77, 5120), salt)[None]
        text_features[:, 40:] = 0
    null = tiny.states("")
    steps = len(expected["traj"])
    path: list[Tensor] = []
    ask = lego.forward

    with torch.inference_mode():
        context = lego.conditioner(Condition(tiny.states(PROMPT), image_features, text_features))
        schedule = Schedule()
        sigmas = schedule.sigmas(steps)

        def watched(latents: Tensor, times: Tensor, *rest: Tensor) -> Tensor:
            path.append(latents[:1] * (sigmas[len(path)] ** 2 + 1) ** 0.5)
            return ask(latents, times, *rest)

        lego.forward = watched
        latents = sampler.sample(
            lego,
            schedule,
            source=model.encode(vae, frame[None])[:, :4],
            context=context,
            null=Conditioner.null(null, context.shape[1]),
            noise=given_noise(case, (1, 4, 8, 8), salt),
            steps=steps,
            shortcut=shortcut,
        )
        decoded = model.decode(vae, latents)[0]
    parity.check("traj", torch.cat(path), expected["traj"], atol=1e-3 * np.abs(expected["traj"]).max())
    parity.check("latent", latents, expected["latent"], atol=1e-3 * np.abs(expected["latent"]).max())
    parity.check("decoded", decoded, expected["decoded"], atol=1e-3 * np.abs(expected["decoded"]).max())
    width, height = (1920, 1440) if text_only else (456, 256)
    written = finish(decoded, (256, round(width / height * 256)))
    assert list(written.shape) == expected["image_shape"].tolist()
    parity.check("image_u8", written[::8, ::8].int(), expected["image_u8"], atol=1)
