"""Guidance, solvers, noise by sample, and conditions that are computed once."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from diffusers.schedulers import scheduling_euler_ancestral_discrete
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from projects.lego import model, sampler
from projects.lego.model import Condition, Conditioner, Schedule
from tests.lego.tiny import configured

SCHEDULE = Schedule()


def toy(latents: Tensor, times: Tensor) -> Tensor:
    """A smooth stand-in for the network: noise grows with the latents and with time."""
    return 0.9 * latents + 0.1 * torch.tanh(latents) * times[:, None, None, None] / 1000


def plain(latents: Tensor, sigma: Tensor) -> Tensor:
    """The same without guidance."""
    scaled = latents / (sigma**2 + 1) ** 0.5
    return latents - sigma * toy(scaled, SCHEDULE.time(sigma).expand(len(latents)))


@given(st.floats(0, 20), st.floats(0, 5))
def test_guidance_with_equal_predictions_changes_nothing(text: float, image: float) -> None:
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sampler.guide(x, x, x, text, image), x, rtol=1e-4, atol=1e-5)


def test_scales_of_one_leave_the_full_condition_and_zeros_leave_none() -> None:
    both, image, none = torch.randn(3, 2, 4)
    torch.testing.assert_close(sampler.guide(both, image, none, 1, 1), both)
    torch.testing.assert_close(sampler.guide(both, image, none, 0, 1), image)
    assert torch.equal(sampler.guide(both, image, none, 0, 0), none)


@given(st.floats(0, 999))
def test_time_is_the_inverse_of_sigma(time: float) -> None:
    assert float(SCHEDULE.time(SCHEDULE.sigma(torch.tensor(time)))) == pytest.approx(time, abs=2e-2)


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1000])
def test_noise_levels_fall_to_zero(count: int) -> None:
    sigmas = SCHEDULE.sigmas(count)
    assert len(sigmas) == count + 1
    assert sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())
    assert float(sigmas[0]) == pytest.approx(14.6146, abs=1e-4)
    with pytest.raises(ValueError, match="between 1 and 1000"):
        SCHEDULE.sigmas(1001)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_euler_ancestral_takes_the_steps_of_diffusers(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With our noise levels put in: those of diffusers are interpolated otherwise."""
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(2, 4, 4, 4, generator=generator) for _ in range(steps + 1)]
    sigmas = SCHEDULE.sigmas(steps)
    ours_next, theirs_next = iter(noises[1:]), iter(noises[1:])
    ours = sampler.euler_ancestral(plain, noises[0] * sigmas[0], sigmas, lambda: next(ours_next))

    monkeypatch.setattr(scheduling_euler_ancestral_discrete, "randn_tensor", lambda *_, **__: next(theirs_next))
    theirs = EulerAncestralDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="linspace"
    )
    theirs.set_timesteps(steps)
    theirs.sigmas = sigmas
    latents = noises[0] * sigmas[0]
    for number, time in enumerate(theirs.timesteps):
        scaled = theirs.scale_model_input(latents, time)
        noise = toy(scaled, SCHEDULE.time(sigmas[number]).expand(2))
        latents = theirs.step(noise, time, latents).prev_sample
    torch.testing.assert_close(ours, latents, rtol=1e-4, atol=1e-4)


def test_dpm_solver_takes_the_steps_of_diffusers() -> None:
    theirs = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="linspace",
        final_sigmas_type="zero",
    )  # fmt: skip
    steps = 12
    theirs.set_timesteps(steps)
    sigmas = SCHEDULE.sigmas(steps)
    start = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3)) * sigmas[0]
    ours = sampler.dpmpp_2m(plain, start, sigmas)
    theirs.sigmas = sigmas
    latents = start / (sigmas[0] ** 2 + 1) ** 0.5  # diffusers counts in latents of unit variance
    for number, time in enumerate(theirs.timesteps):
        noise = toy(latents, SCHEDULE.time(sigmas[number]).expand(1))
        latents = theirs.step(noise, time, latents).prev_sample
    torch.testing.assert_close(ours, latents, rtol=1e-3, atol=2e-3)


def test_dpm_solver_is_nearer_to_the_truth_than_as_many_euler_steps() -> None:
    """Where data are unit noise themselves the answer is known: the start, shrunk to unit variance."""
    sigmas = SCHEDULE.sigmas(20)
    start = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(4)) * sigmas[0]

    def ideal(latents: Tensor, sigma: Tensor) -> Tensor:
        return latents / (1 + sigma**2)

    euler = start
    for now, after in itertools.pairwise(sigmas):
        euler = euler + (euler - ideal(euler, now)) / now * (after - now)
    truth = start / (1 + sigmas[0] ** 2) ** 0.5
    errors = [float((found - truth).norm()) for found in (sampler.dpmpp_2m(ideal, start, sigmas), euler)]
    assert errors[0] < 0.9 * errors[1], errors


def test_noise_belongs_to_the_sample() -> None:
    names = ["clip/0", "clip/1", "clip/2"]
    together = sampler.SampleNoise(0, names, (4, 2, 2), "cpu")
    first, second = together(), together()
    for place, name in enumerate(names):
        alone = sampler.SampleNoise(0, [name], (4, 2, 2), "cpu")
        assert torch.equal(alone()[0], first[place])
        assert torch.equal(alone()[0], second[place])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(sampler.SampleNoise(1, names, (4, 2, 2), "cpu")(), first)


@pytest.mark.parametrize("features", ["both", "image", "text", "none"])
def test_remembered_conditions_change_no_prediction(home: Path, tmp_path: Path, features: str) -> None:
    """One zero token with a higher logit stands for 333 of them; leaving them out would be another network."""
    cfg = configured(home, tmp_path, f"model.features={features}").model
    torch.manual_seed(0)
    lego = model.build(cfg).eval()
    for layer in lego.unet.modules():  # fresh cross-attention hardly speaks
        if type(layer).__name__ == "Attention":
            torch.nn.init.normal_(layer.to_k.weight, std=0.5)
            torch.nn.init.normal_(layer.to_v.weight, std=0.5)
    size = 2
    given = Condition(torch.randn(size, 77, 32), torch.randn(size, 256, 16), torch.randn(size, 77, 16))
    null_text = torch.randn(1, 77, 32)
    with torch.inference_mode():
        context = lego.conditioner(given)
        null = Conditioner.null(null_text, context.shape[1])
        contexts = torch.cat([context, null.expand(2 * size, -1, -1)])
        noisy, source = torch.randn(3 * size, 4, 16, 16), torch.randn(3 * size, 4, 16, 16)
        time = torch.full((3 * size,), 400.5)
        expected = lego(noisy, time, source, contexts)
        before = lego.unet.attn_processors
        with sampler.remembered(lego.unet, context, null):
            found = lego(noisy, time, source, torch.zeros_like(contexts))
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        assert lego.unet.attn_processors == before
        if features == "both":
            short = torch.cat([context[:, :77], null_text.expand(2 * size, -1, -1)])
            other = lego(noisy[size:], time[size:], source[size:], short[size:])
            assert float((other - expected[size:]).abs().max()) > 1e-2


def test_zero_tokens_are_counted(home: Path, tmp_path: Path) -> None:
    lego = model.build(configured(home, tmp_path).model)
    null = Conditioner.null(torch.ones(1, 77, 32), 410)
    with sampler.remembered(lego.unet, torch.zeros(1, 410, 32), null):
        processors = [p for name, p in lego.unet.attn_processors.items() if ".attn2" in name]
    assert {p.null[0].shape[2] for p in processors} == {78}
    assert [float(p.bias[..., -1]) for p in processors] == pytest.approx([math.log(333)] * len(processors))
