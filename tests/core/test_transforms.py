"""Clip transforms: values against naive formulas, layouts, chance, devices and messages."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core import transforms
from core.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    CutMix,
    Erase,
    Flip,
    Mixup,
    Normalize,
    OnKey,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    RandomShortSide,
    ShortSide,
    Step,
    ThreeCrops,
    ToFloat,
)
from core.transforms.color import OPERATIONS, augment

quick = settings(max_examples=25, deadline=None)
sides = st.integers(16, 40)
seeds = st.integers(0, 2**32)

EVERY_STEP: list[Step] = [
    ToFloat(),
    Normalize(0.45, 0.225),
    ShortSide(20),
    ShortSide(20, antialias=True),
    RandomShortSide(16, 24),
    RandomShortSide(16, 24, inverse=True),
    CenterCrop(16),
    CenterCrop(50, fill=0.45),
    RandomCrop(16),
    RandomResizedCrop(12),
    ThreeCrops(16),
    Flip(0.5),
    ColorJitter(0.4, 0.4, 0.4, 0.1),
    RandAugment(3, 15),
    Erase(0.9),
]
each_step = pytest.mark.parametrize("step", EVERY_STEP, ids=repr)


def raw_clip(height: int = 24, width: int = 32, frames: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator)


def as_float(clip: Tensor) -> Tensor:
    """The state change written plainly."""
    return clip.permute(3, 0, 1, 2).float() / 255


def frames_first(clip: Tensor) -> Tensor:
    """(T,H,W,3) of either state."""
    return clip if clip.dtype == torch.uint8 else clip.permute(1, 2, 3, 0)


# --- what all steps share


@each_step
def test_raw_and_float_clips_give_the_same_pixels(step: Step) -> None:
    clip = raw_clip()
    from_raw, from_float = step(clip, Random(3)), step(as_float(clip), Random(3))
    if from_raw.dtype == torch.uint8:
        from_raw = from_raw.movedim(-1, -4).float() / 255
    tolerance = 2 / 255 if isinstance(step, RandAugment) else 1e-6  # bytes round after each operation
    assert from_raw.shape == from_float.shape
    assert (from_raw - from_float).abs().quantile(0.98) <= tolerance
    torch.testing.assert_close(from_raw.mean(), from_float.mean(), atol=tolerance, rtol=0)


@each_step
def test_the_clip_given_is_never_written_to(step: Step) -> None:
    for clip in (raw_clip(), as_float(raw_clip())):
        before = clip.clone()
        Compose([step])(clip, Random(1))
        step(clip, Random(1))
        assert torch.equal(clip, before)


@each_step
def test_the_same_rng_gives_the_same_clip(step: Step) -> None:
    clip = raw_clip()
    assert torch.equal(step(clip, Random(7)), step(clip, Random(7)))
    if step.random:
        assert len({tuple(step(clip, Random(seed)).flatten().tolist()) for seed in range(12)}) > 1


@each_step
@quick
@given(height=sides, width=sides, seed=seeds)
def test_a_clip_of_identical_frames_stays_one(step: Step, height: int, width: int, seed: int) -> None:
    clip = raw_clip(height, width, frames=1, seed=seed % 1000).expand(4, -1, -1, -1)
    out = step(clip, Random(seed))
    time = -4 if out.dtype == torch.uint8 else -3
    first = out.narrow(time, 0, 1)
    assert out.shape[time] == 4
    torch.testing.assert_close(out, first.expand_as(out), atol=1e-6, rtol=0)


@each_step
def test_a_batch_equals_its_clips_one_by_one(step: Step) -> None:
    clips, steps = [raw_clip(seed=i) for i in range(3)], Compose([step, CenterCrop(12)])
    one_by_one = torch.cat([steps(clip, Random(i)) for i, clip in enumerate(clips)])
    for together in (torch.stack(clips), clips):
        rngs = [Random(i) for i in range(3)]
        torch.testing.assert_close(steps(together, rngs), one_by_one, atol=1e-6, rtol=0)


@each_step
def test_views_in_front_are_left_alone(step: Step) -> None:
    views = torch.stack([raw_clip(seed=1), raw_clip(seed=2)])
    out = step(views, Random(5))
    for view, changed in zip(views, out, strict=True):
        torch.testing.assert_close(changed, step(view, Random(5)), atol=1e-6, rtol=0)


@each_step
@pytest.mark.parametrize(
    ("clip", "came"),
    [
        (torch.zeros(3, 24, 32, 3, dtype=torch.int32), "int32 (3, 24, 32, 3)"),
        (torch.zeros(3, 24, 32, 4, dtype=torch.uint8), "uint8 (3, 24, 32, 4)"),
        (torch.zeros(24, 32, 3, dtype=torch.uint8), "uint8 (24, 32, 3)"),
        (torch.zeros(4, 3, 24, 32), "float32 (4, 3, 24, 32)"),
        (torch.zeros(0, 24, 32, 3, dtype=torch.uint8), "uint8 (0, 24, 32, 3)"),
    ],
)
def test_what_is_no_clip_is_named(step: Step, clip: Tensor, came: str) -> None:
    with pytest.raises(ValueError, match="raw uint8") as error:
        step(clip, Random(0))
    assert came in str(error.value)
    assert type(step).__name__ in str(error.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_step
def test_cuda_equals_cpu(step: Step) -> None:
    for clip in (raw_clip(), as_float(raw_clip())):
        for seed in range(8):
            cpu, cuda = step(clip, Random(seed)), step(clip.cuda(), Random(seed))
            assert cuda.is_cuda
            assert cuda.dtype == cpu.dtype
            # One byte's rounding may go the other way; a threshold (posterize, solarize) then makes it a jump.
            difference = (cuda.cpu().double() - cpu.double()).abs() / (255 if cpu.dtype == torch.uint8 else 1)
            tolerance = 1.01 / 255 if isinstance(step, RandAugment) else 2e-5
            assert difference.quantile(0.99) <= tolerance


# --- values


def test_normalize_is_bitwise_the_plain_formula() -> None:
    clip = raw_clip()
    step = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (step.mean, step.std))
    assert torch.equal(step(clip), (as_float(clip) - mean) / std)
    assert torch.equal(step(as_float(clip)), (as_float(clip) - mean) / std)
    assert step(as_float(clip).half()).dtype == torch.float16


def test_normalize_used_in_evaluation_first_still_lets_gradients_through() -> None:
    step, clip = Normalize(0.31, 0.27), as_float(raw_clip())
    with torch.inference_mode():
        step(clip)
    clip.requires_grad_()
    step(clip).sum().backward()
    assert clip.grad is not None
    np.testing.assert_allclose(clip.grad, 1 / 0.27, rtol=1e-5)


@quick
@given(height=sides, width=sides, size=st.integers(8, 60))
def test_short_side_floors_the_long_side(height: int, width: int, size: int) -> None:
    out = ShortSide(size)(raw_clip(height, width))
    h, w = out.shape[-2:]
    assert min(h, w) == size
    assert (h if height > width else w) in {size * max(height, width) // min(height, width), max(h, w)}
    assert abs(max(h, w) - size * max(height, width) / min(height, width)) < 1 + 1e-9
    assert max(h, w) <= size * max(height, width) / min(height, width) + 1e-9


def test_short_side_samples_at_pixel_centers() -> None:
    ramp = torch.arange(8.0).expand(3, 1, 4, 8) / 8  # doubling a ramp: quarters between, flat at both ends
    row = ShortSide(8)(ramp)[0, 0, 0] * 8
    expected = [max(0.0, min(7.0, (i + 0.5) / 2 - 0.5)) for i in range(16)]
    np.testing.assert_allclose(row, expected, atol=1e-6)


def test_antialias_averages_when_shrinking() -> None:
    stripes = (torch.arange(64) % 4 == 0).float().expand(3, 1, 64, 64)
    plain, smooth = (ShortSide(16, antialias=flag)(stripes)[..., 2:-2] for flag in (False, True))
    assert smooth.std() < 0.02 < 0.2
    assert abs(smooth.mean() - 0.25) < 0.02
    assert abs(plain.mean() - 0.25) > 0.1


@quick
@given(seed=seeds)
def test_random_short_side_stays_in_its_span(seed: int) -> None:
    for inverse in (False, True):
        out = RandomShortSide(18, 27, inverse=inverse)(raw_clip(20, 30), Random(seed))
        assert 18 <= min(out.shape[-2:]) <= 27


def test_random_short_side_reaches_both_ends_and_inverse_favours_small_sizes() -> None:
    clip = raw_clip(20, 20, frames=1)
    rng = Random(0)
    even, inverse = RandomShortSide(10, 40), RandomShortSide(10, 40, inverse=True)
    sizes = [even(clip, rng).shape[-1] for _ in range(400)]
    small = [inverse(clip, rng).shape[-1] for _ in range(400)]
    assert {min(sizes), max(sizes)} == {10, 40}
    assert abs(np.mean(sizes) - 25) < 1.5
    assert abs(np.mean(small) - math.log(4) / (1 / 10 - 1 / 40)) < 1.5  # E[1/u] for u even in [1/40, 1/10]


@quick
@given(height=st.integers(1, 30), width=st.integers(1, 30), size=st.integers(1, 30))
def test_center_crop_pads_after_normalizing_in_either_order(height: int, width: int, size: int) -> None:
    clip = raw_clip(height, width, frames=2)
    early = Compose([CenterCrop(size, fill=0.45), Normalize(0.45, 0.225)])(clip)
    late = Compose([Normalize(0.45, 0.225), CenterCrop(size, fill=0.0)])(clip)
    assert early.shape == (1, 3, 2, size, size)
    torch.testing.assert_close(early, late, atol=1e-6, rtol=0)
    pad_top, cut_top = max(0, (size - height) // 2), round(max(0, height - size) / 2)
    pad_left, cut_left = max(0, (size - width) // 2), round(max(0, width - size) / 2)
    expected = torch.zeros(3, 2, size, size)
    inner = ((as_float(clip) - 0.45) / 0.225)[..., cut_top : cut_top + size, cut_left : cut_left + size]
    expected[..., pad_top : pad_top + inner.shape[-2], pad_left : pad_left + inner.shape[-1]] = inner
    torch.testing.assert_close(early[0], expected, atol=1e-6, rtol=0)


def test_center_crop_fills_each_channel_with_its_own_value() -> None:
    out = CenterCrop(6, fill=(0.1, 0.2, 0.3))(raw_clip(4, 6))
    np.testing.assert_allclose(out[:, 0, 0, 0], [0.1, 0.2, 0.3], atol=1e-7)


@quick
@given(height=st.integers(10, 30), width=st.integers(10, 30), seed=seeds)
def test_random_crop_is_a_window_of_the_clip(height: int, width: int, seed: int) -> None:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    clip = torch.stack([rows, columns, rows * 0], -1).to(torch.uint8)[None]
    out = RandomCrop(10)(clip, Random(seed))
    top, left = out[0, 0, 0, :2].tolist()
    assert torch.equal(out, clip[:, top : top + 10, left : left + 10])


def test_random_crop_reaches_every_place() -> None:
    clip = torch.arange(12, dtype=torch.uint8).view(1, 1, 12, 1).expand(1, 12, 12, 3)
    rng = Random(0)
    assert {int(RandomCrop(10)(clip, rng)[0, 0, 0, 0]) for _ in range(100)} == {0, 1, 2}


def test_random_resized_crop_keeps_area_and_aspect_in_their_spans() -> None:
    height, width = 60, 80
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    clip = torch.stack([rows, columns, rows * 0])[:, None]
    step, rng = RandomResizedCrop(64, scale=(0.2, 0.9), ratio=(0.5, 2.0)), Random(0)
    for _ in range(50):
        out = step(clip, rng)[:, 0]
        assert out.shape == (3, 64, 64)
        # slopes of the two ramps tell the box, away from the border where the kernel repeats the last pixel
        h = (out[0, 40, 30] - out[0, 20, 30]) / 20 * 64 * height
        w = (out[1, 30, 40] - out[1, 30, 20]) / 20 * 64 * width
        assert 0.19 < h * w / (height * width) < 0.91
        assert 0.48 < w / h < 2.1


def test_random_resized_crop_of_a_thin_frame_takes_the_middle() -> None:
    clip = torch.linspace(0, 1, 100).expand(3, 1, 4, 100)
    out = RandomResizedCrop(8, scale=(1.0, 1.0))(clip, Random(0))
    assert abs(out.mean() - 0.5) < 0.01
    assert out.max() - out.min() < 0.06  # 5 of 100 columns: the widest box of aspect 4/3 in 4 rows
    assert RandomResizedCrop(8, ratio=(3.0, 4.0))(raw_clip(10, 1), Random(0)).shape == (3, 3, 8, 8)


def test_three_crops_lie_along_the_long_side() -> None:
    clip = torch.arange(9.0).expand(3, 2, 4, 9)
    views = ThreeCrops(4)(clip)
    assert views.shape == (3, 3, 2, 4, 4)
    assert views[:, 0, 0, 0, 0].tolist() == [0, 3, 5]  # 2.5 is rounded up
    assert ThreeCrops(4)(clip.transpose(-1, -2))[:, 0, 0, 0, 0].tolist() == [0, 3, 5]
    assert Compose([ThreeCrops(16)])([raw_clip(20, 30), raw_clip(16, 16)]).shape == (2, 3, 3, 3, 16, 16)


@quick
@given(height=sides, width=sides, seed=seeds)
def test_flipping_twice_is_no_change_and_once_mirrors(height: int, width: int, seed: int) -> None:
    for clip in (raw_clip(height, width), as_float(raw_clip(height, width))):
        once = Flip(1.0)(clip, Random(seed))
        assert torch.equal(Flip(1.0)(once, Random(seed)), clip)
        assert torch.equal(frames_first(once)[:, :, 0], frames_first(clip)[:, :, -1])
        assert Flip(0.0)(clip, Random(seed)) is clip


def test_color_jitter_of_zero_changes_nothing() -> None:
    clip = raw_clip()
    assert torch.equal(ColorJitter()(clip, Random(0)), as_float(clip))


@quick
@given(seed=seeds)
def test_color_jitter_draws_its_factors_from_their_spans(seed: int) -> None:
    gray = torch.full((3, 2, 4, 4), 0.4)
    brightness = float(ColorJitter(brightness=0.5)(gray, Random(seed)).mean()) / 0.4
    assert 0.5 - 1e-6 <= brightness <= 1.5 + 1e-6
    clip = as_float(raw_clip(seed=1)) * 0.2 + 0.4
    luma = (clip * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1, 1)).sum(0)
    out = ColorJitter(contrast=0.5)(clip, Random(seed))
    factor = (out - luma.mean((1, 2), keepdim=True)) / (clip - luma.mean((1, 2), keepdim=True))
    assert 0.5 - 1e-2 <= factor.median() <= 1.5 + 1e-2
    assert factor.quantile(0.9) - factor.quantile(0.1) < 1e-2
    out = ColorJitter(saturation=0.5)(clip, Random(seed))
    factor = (out - luma) / (clip - luma)
    assert factor.quantile(0.9) - factor.quantile(0.1) < 1e-2


def test_hue_turns_the_color_and_keeps_value() -> None:
    red = torch.tensor([0.8, 0.2, 0.2]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    out = ColorJitter(hue=0.5)(red, Random(2))
    assert not torch.allclose(out, red, atol=0.05)
    np.testing.assert_allclose(out.amax(0), 0.8, atol=1e-5)
    np.testing.assert_allclose(out.amin(0), 0.2, atol=1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("raw", [True, False])
def test_rand_augment_operations(name: str, raw: bool) -> None:
    frames = raw_clip(24, 32, frames=2).movedim(-1, -3) // 2 + 60
    frames = frames if raw else frames / 255
    out = augment(frames, name, 0.5, 1)
    assert out.shape == frames.shape
    assert out.dtype == frames.dtype
    if name != "identity":
        assert not torch.equal(out, frames)
    if name not in ("autocontrast", "equalize"):  # those have no strength
        torch.testing.assert_close(augment(frames, name, 0.0, 1).double(), frames.double(), atol=2e-5, rtol=0)
    two_ways = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
    two_ways |= {"color", "contrast", "brightness", "sharpness"}
    assert torch.equal(augment(frames, name, 0.5, -1), out) == (name not in two_ways)


def test_rand_augment_shifts_by_whole_pixels_and_knows_its_names() -> None:
    frames = raw_clip(20, 331, frames=1).movedim(-1, -3)
    shifted = augment(frames, "translate_x", 0.1, 1)  # 15 pixels of 331
    assert torch.equal(shifted[..., 15:], frames[..., :-15])
    assert not shifted[..., :15].any()
    with pytest.raises(ValueError, match=r"'blur'.*solarize"):
        augment(frames, "blur", 0.1, 1)


def test_rand_augment_draws_every_operation() -> None:
    clip = raw_clip(24, 32, frames=1) // 2 + 60
    assert torch.equal(RandAugment(0)(clip, Random(0)), clip)
    results = {tuple(RandAugment(1, 15)(clip, Random(seed)).flatten().tolist()) for seed in range(300)}
    assert len(results) == len(OPERATIONS) + 9  # nine of them in two directions


@quick
@given(height=sides, width=sides, seed=seeds)
def test_erase_fills_one_box_in_all_frames(height: int, width: int, seed: int) -> None:
    clip = torch.rand(3, 4, height, width) + 1
    out = Erase(p=1.0, scale=(0.1, 0.3), fill=-1.0)(clip, Random(seed))
    hole = out == -1
    assert torch.equal(hole, hole[:1, :1].expand_as(hole))
    assert torch.equal(out[~hole], clip[~hole])
    rows, columns = hole[0, 0].any(1).nonzero(), hole[0, 0].any(0).nonzero()
    box = hole[0, 0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.all()
    assert 0.05 < box.numel() / (height * width) < 0.36


def test_erase_with_noise_and_on_raw_clips() -> None:
    clip = torch.zeros(3, 2, 64, 64)
    noise = Erase(p=1.0, scale=(0.3, 0.3), fill="noise")(clip, Random(0))
    inside = noise[noise != 0]
    assert abs(inside.mean()) < 0.05
    assert abs(inside.std() - 1) < 0.05
    raw = Erase(p=1.0, scale=(0.3, 0.3), fill=0.5)(torch.zeros(2, 64, 64, 3, dtype=torch.uint8), Random(0))
    assert set(raw.unique().tolist()) == {0, 128}
    assert Erase(p=0.0)(clip, Random(0)) is clip
    with pytest.raises(ValueError, match="put it after Normalize"):
        Erase(fill="noise")(raw_clip(), Random(0))


# --- rows of steps


def test_compose_takes_a_clip_a_list_or_a_batch() -> None:
    steps = Compose([CenterCrop(16), Normalize(0.5, 0.5)])
    one, other = raw_clip(20, 30), raw_clip(24, 18)
    assert steps(one).shape == (1, 3, 3, 16, 16)
    torch.testing.assert_close(steps([one, other]), torch.cat([steps(one), steps(other)]))
    torch.testing.assert_close(steps(torch.stack([one, one])), torch.cat([steps(one), steps(one)]))
    assert steps([one, other]).is_contiguous()
    assert steps(torch.stack([torch.stack([one, one])])).shape == (1, 2, 3, 3, 16, 16)  # (B,N,...) for N clips


def test_compose_without_normalize_gives_float_in_0_to_1() -> None:
    out = Compose([Flip(0.0)])(raw_clip(), Random(0))
    assert torch.equal(out[0], as_float(raw_clip()))
    assert torch.equal(Compose([])(raw_clip())[0], as_float(raw_clip()))


def test_compose_draws_for_each_clip_alone() -> None:
    steps = Compose([RandomShortSide(18, 24), RandomCrop(16), Flip(), Normalize(0.5, 0.5)])
    clips = [raw_clip(20 + i, 30, seed=i) for i in range(4)]
    together = steps(clips, [Random(i) for i in range(4)])
    backwards = steps(clips[::-1], [Random(i) for i in (3, 2, 1, 0)])
    assert torch.equal(together, backwards.flip(0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Compose([Flip()])(raw_clip()), r"Flip\(p=0.5\).*pass one random.Random per clip"),
        (lambda: Compose([Flip()])([raw_clip()] * 2, [Random(0)]), "got 1 for 2 clips"),
        (lambda: Compose([])([]), "at least one clip"),
        (lambda: Compose([])([raw_clip(10, 12), raw_clip(8, 8)]), r"equal shapes.*\(3, 3, 10, 12\).*add a crop"),
        (lambda: Compose([Normalize(0.5, 0.5), ColorJitter(0.4)]), "ColorJitter works on values 0..1: put it before"),
        (lambda: CenterCrop(32)(raw_clip(24, 40)), r"CenterCrop\(32\).*at least 32x32, got 24x40.*ShortSide.*fill"),
        (lambda: RandomCrop(32)(raw_clip(40, 24), Random(0)), "got 40x24"),
        (lambda: ThreeCrops(32)(raw_clip(24, 40)), "got 24x40"),
        (lambda: Normalize((0.5, 0.5), 0.5), "Normalize.mean takes one number or one for each of R, G and B"),
        (lambda: Normalize(0.5, 0.0), "std must be above 0"),
        (lambda: ShortSide(0), "at least 1 pixel; got 0"),
        (lambda: RandomShortSide(30, 20), "RandomShortSide takes"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 1.5)), "RandomResizedCrop.scale takes"),
        (lambda: Flip(1.5), "Flip.p is a probability"),
        (lambda: ColorJitter(hue=0.7), "ColorJitter.hue must be from 0 to 0.5"),
        (lambda: RandAugment(2, 31), "magnitude from 0 to 30"),
        (lambda: Erase(fill="red"), 'a number or "noise"'),
        (lambda: Mixup(0.0), "Mixup.alpha must be above 0"),
        (lambda: CutMix()(torch.zeros(2, 3, 1, 4, 4), torch.zeros(2, dtype=torch.int64), Random(0)), "one_hot"),
        (lambda: Mixup()(torch.zeros(3, 1, 4, 4), torch.zeros(3, 5), Random(0)), r"float batch \(B,3,T,H,W\)"),
        (lambda: OnKey("video", Compose([]))({"image": 1}), r"no 'video'.*\['image'\]"),
    ],
)
def test_errors_name_what_came_and_what_to_do(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]


def test_on_key_changes_only_its_key() -> None:
    batch = {"video": [raw_clip(20, 30), raw_clip(18, 18)], "label": torch.tensor([1, 2]), "id": ["a", "b"]}
    out = OnKey("video", Compose([CenterCrop(16)]))(batch, None)
    assert out["video"].shape == (2, 3, 3, 16, 16)
    assert out["label"] is batch["label"]
    assert out["id"] is batch["id"]
    assert isinstance(batch["video"], list)


def test_public_names_are_documented() -> None:
    for name in transforms.__all__:
        assert getattr(transforms, name).__doc__


# --- mixing


@quick
@given(seed=seeds, batch=st.integers(1, 4))
def test_mixup_blends_clips_and_labels_by_one_share(seed: int, batch: int) -> None:
    video = torch.rand(batch, 3, 2, 4, 4)
    labels = torch.eye(5)[torch.arange(batch)]
    mixed, soft = Mixup(0.8)(video, labels, Random(seed))
    share = soft[0, 0] if batch > 1 else torch.tensor(1.0)
    previous = torch.roll(video, 1, 0)
    torch.testing.assert_close(mixed, share * video + (1 - share) * previous)
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)


@quick
@given(seed=seeds)
def test_cutmix_shares_follow_the_area_pasted(seed: int) -> None:
    video = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 3, 2, 9, 13)
    labels = torch.eye(3)
    mixed, soft = CutMix()(video, labels, Random(seed))
    for i in range(3):
        pasted = mixed[i] == (i - 1) % 3
        assert torch.equal(pasted, pasted[:1, :1].expand_as(pasted))
        np.testing.assert_allclose(soft[i, i], 1 - pasted.float().mean(), atol=1e-6)
        np.testing.assert_allclose(soft[i, (i - 1) % 3], pasted.float().mean(), atol=1e-6)
