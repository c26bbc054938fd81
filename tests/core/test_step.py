"""TrainStep on one process: every promise by value. Several processes: tests/dist/test_step_two_processes.py."""

from __future__ import annotations

import copy
import functools
import io
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from core.optim import OptimConfig, lr_factor
from core.step import TrainStep, ema_decay, resolve_precision
from tests.runs import same

SGD = {"name": "sgd", "lr": 0.1, "schedule": "constant"}


class Net(nn.Module):
    """A bit of everything: convolution, batch statistics, dropout, a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.frozen(self.norm(self.conv(x)).relu().mean((2, 3, 4)))))


def net() -> Net:
    torch.manual_seed(1)
    return Net()


def linear() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(5, 3)


def batches(count: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(2)
    return [(torch.randn(size, 5, generator=g), torch.randn(size, 3, generator=g)) for _ in range(count)]


def clips(count: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(3)
    shape = (4, 2, 2, 4, 4)
    return [(torch.randn(shape, generator=g), torch.randint(3, (4,), generator=g)) for _ in range(count)]


def train(step: TrainStep, data: list[tuple[Tensor, Tensor]]) -> list[Tensor | None]:
    norms = []
    for x, y in data:
        with step.forward() as model:
            out = model(x)
            loss = (out - y).square().mean() if y.is_floating_point() else nn.functional.cross_entropy(out, y)
        norms.append(step.backward(loss))
    return norms


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# ------------------------------------------------------------------------------------------------------ accumulation


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_micro_batches_equal_the_whole_batch(accumulate: int) -> None:
    whole, parts = linear(), linear()
    x, y = batches(1, size=8)[0]
    pieces = list(zip(x.chunk(accumulate), y.chunk(accumulate), strict=True))
    one = TrainStep(whole, OptimConfig(**SGD), batches_per_epoch=1)
    many = TrainStep(parts, OptimConfig(**SGD, accumulate=accumulate), batches_per_epoch=accumulate)
    for _ in range(3):
        train(one, [(x, y)])
        norms = train(many, pieces)
        assert [norm is None for norm in norms] == [True] * (accumulate - 1) + [False]
    assert (one.count, many.count) == (3, 3)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(parts.bias, whole.bias, rtol=0, atol=1e-6)


def test_a_loss_times_the_window_sums_the_gradients() -> None:
    model, reference = linear(), linear()
    step = TrainStep(model, OptimConfig(**SGD, accumulate=3), batches_per_epoch=5)
    windows, data = [], batches(5)
    for x, y in data:
        windows.append(step.window)
        with step.forward() as net:
            loss = (net(x) - y).square().mean()
        step.backward(loss * step.window)
    assert windows == [3, 3, 3, 2, 2]

    optimizer = torch.optim.SGD(reference.parameters(), 0.1, momentum=0.9)
    for window in (data[:3], data[3:]):
        optimizer.zero_grad()
        for x, y in window:
            (reference(x) - y).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(model.weight, reference.weight, rtol=0, atol=1e-6)


def test_the_rest_of_an_epoch_makes_a_step_of_its_own() -> None:
    model, reference = linear(), linear()
    step = TrainStep(model, OptimConfig(**SGD, accumulate=3), batches_per_epoch=5)
    data = batches(10)
    norms = train(step, data)
    assert [norm is not None for norm in norms] == [False, False, True, False, True] * 2
    assert (step.count, step.steps_per_epoch) == (4, 2)

    optimizer = torch.optim.SGD(reference.parameters(), 0.1, momentum=0.9)
    for window in (data[:3], data[3:5], data[5:8], data[8:]):
        optimizer.zero_grad()
        x, y = (torch.cat(parts) for parts in zip(*window, strict=True))
        (reference(x) - y).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(model.weight, reference.weight, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------ clipping, schedule, parameters


@pytest.mark.parametrize(("limit", "moved"), [(0.0, 5.0), (0.5, 0.5), (100.0, 5.0)])
def test_clipping_bounds_the_gradient_and_reports_its_norm(limit: float, moved: float) -> None:
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    cfg = OptimConfig(name="sgd", lr=1.0, momentum=0.0, schedule="constant", clip_norm=limit)
    step = TrainStep(model, cfg, batches_per_epoch=1)
    with step.forward() as forward:
        loss = forward(torch.tensor([[3.0, 4.0]])).sum()
    norm = step.backward(loss)
    assert norm is not None
    assert norm.shape == ()
    assert norm.item() == pytest.approx(5.0)
    torch.testing.assert_close(before - model.weight, moved * torch.tensor([[0.6, 0.8]]), rtol=1e-4, atol=1e-5)


def test_rates_follow_the_schedule_in_optimizer_steps() -> None:
    cfg = OptimConfig(name="sgd", lr=0.5, epochs=3, warmup=1, accumulate=2)
    step = TrainStep(linear(), cfg, batches_per_epoch=5, rules=[("bias", {"lr_scale": 0.1})])
    assert (step.steps_per_epoch, step.total) == (3, 9)
    used = []
    for x in batches(15):
        if train(step, [x]) != [None]:
            used.append(step.lr)
            scaled = {group["lr_scale"]: group["lr"] for group in step.optimizer.param_groups}
            assert scaled == {1.0: pytest.approx(step.lr), 0.1: pytest.approx(0.1 * step.lr)}
    assert used == pytest.approx([0.5 * lr_factor(i, cfg, 9, 3) for i in range(9)])
    assert used[0] == 0
    assert max(used) == 0.5


def test_a_schedule_of_ones_own() -> None:
    step = TrainStep(linear(), OptimConfig(**SGD), batches_per_epoch=3, factor=lambda i: 1 / (1 + i))
    rates = [step.lr]
    for x in batches(3):
        train(step, [x])
        rates.append(step.lr)
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.1 / 3])


def test_frozen_parameters_stay_and_the_others_move() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    train(TrainStep(model, OptimConfig(**SGD, weight_decay=0.1, ema=0.9), batches_per_epoch=2), clips(2))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    step = TrainStep(linear(), OptimConfig(**SGD), batches_per_epoch=1)
    with pytest.raises(ValueError, match=r"shape \(4, 3\); expected a scalar"):
        step.backward(step.model(batches(1)[0][0]))


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="smaller than one batch"):
        TrainStep(linear(), OptimConfig(), batches_per_epoch=0)


# --------------------------------------------------------------------------------------------------------- precision


def test_precision_auto_is_fp32_on_the_cpu() -> None:
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"
    with pytest.raises(ValueError, match="precision is 'half'; expected auto, fp32, bf16 or fp16"):
        TrainStep(linear(), OptimConfig(), batches_per_epoch=1, precision="half")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_each_precision_computes_in_its_type_and_learns(precision: Any, dtype: torch.dtype) -> None:
    model = linear()
    step = TrainStep(model, OptimConfig(**SGD, clip_norm=1.0), batches_per_epoch=1, precision=precision)
    x, y = batches(1)[0]
    losses = []
    for _ in range(20):
        with step.forward() as forward:
            out = forward(x)
            assert out.dtype == dtype
            loss = (out - y).float().square().mean()
        step.backward(loss)
        losses.append(loss.item())
    assert model.weight.dtype == torch.float32
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_an_overflow_in_fp16_skips_the_step_and_leaves_no_trace(name: str) -> None:
    model, clean = linear(), linear()
    cfg = OptimConfig(name=name, lr=0.1, schedule="constant", clip_norm=1.0)
    step = TrainStep(model, cfg, batches_per_epoch=1, precision="fp16")
    before = copy.deepcopy(model.state_dict())
    with step.forward() as forward:
        loss = forward(batches(1)[0][0]).float().sum() * math.inf
    norm = step.backward(loss)
    assert norm is not None
    assert not torch.isfinite(norm)
    assert same(dict(model.state_dict()), dict(before))
    assert step.scaler.get_scale() == 65536 / 2
    assert step.count == 1

    # What follows is what a run that never overflowed does, momentum and Adam's step count included.
    other = TrainStep(clean, cfg, batches_per_epoch=1, precision="fp16")
    other.scaler.load_state_dict({**other.scaler.state_dict(), "scale": 65536 / 2})
    for x in batches(2):
        train(step, [x])
        train(other, [x])
    torch.testing.assert_close(model.weight, clean.weight, rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- EMA


def test_the_average_by_value_with_buffers_and_counters() -> None:
    model = net()
    step = TrainStep(model, OptimConfig(**SGD, ema=0.75, ema_warmup=4.0), batches_per_epoch=10)
    expected = copy.deepcopy(model.state_dict())
    for update, x in enumerate(clips(6), start=1):
        train(step, [x])
        decay = min(0.75, (1 + update) / (4 + update))
        assert ema_decay(update, step.cfg) == decay
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value.clone()
    assert step.eval_model is step.average
    assert step.eval_model is not model
    assert not step.eval_model.training
    for name, value in step.eval_model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert step.eval_model.norm.num_batches_tracked == 6
    assert not torch.allclose(step.eval_model.head.weight, model.head.weight)


def test_the_average_can_follow_after_every_micro_batch() -> None:
    """Three micro-batches a step: weights stand still twice, the average goes on; a resumed run counts on."""
    model = linear()
    cfg = OptimConfig(**SGD, accumulate=3, ema=0.9, ema_per="batch")
    step = TrainStep(model, cfg, batches_per_epoch=6)
    expected = model.weight.detach().clone()
    for update, x in enumerate(batches(5), start=1):
        train(step, [x])
        decay = ema_decay(update, cfg)
        expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(step.eval_model.weight, expected)
    assert (step.count, step.averaged) == (1, 5)
    again = TrainStep(linear(), cfg, batches_per_epoch=6)
    again.load_state_dict(through_a_file(step.state_dict()))
    assert again.averaged == 5


def test_without_an_average_the_model_itself_is_evaluated() -> None:
    model = linear()
    assert TrainStep(model, OptimConfig(), batches_per_epoch=1).eval_model is model


def test_the_decay_can_be_constant_from_the_start() -> None:
    assert ema_decay(1, OptimConfig(ema=0.999, ema_warmup=0.0)) == 0.999
    assert ema_decay(1, OptimConfig(ema=0.999)) == pytest.approx(2 / 11)
    assert ema_decay(100_000, OptimConfig(ema=0.999)) == 0.999


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("stop", [3, 4, 9])
def test_resuming_equals_not_stopping_bit_for_bit(name: str, precision: Any, stop: int) -> None:
    """Accumulation by 3 in epochs of 7: 3 is between steps, 4 and 9 are in the middle of one."""
    cfg = OptimConfig(name=name, lr=0.05, epochs=2, warmup=0.5, weight_decay=0.1, accumulate=3, ema=0.9, clip_norm=1.0)

    def make() -> tuple[Net, TrainStep]:
        model = net()
        return model, TrainStep(model, cfg, batches_per_epoch=7, precision=precision)

    data = clips(14)
    straight_model, straight = make()
    torch.manual_seed(5)
    train(straight, data)

    first_model, first = make()
    torch.manual_seed(5)
    train(first, data[:stop])
    random = torch.get_rng_state()
    weights, saved = through_a_file(first_model.state_dict()), through_a_file(first.state_dict())

    model, step = make()
    torch.manual_seed(99)
    model.load_state_dict(weights)
    step.load_state_dict(saved)
    torch.set_rng_state(random)
    train(step, data[stop:])
    assert step.count == straight.count == 6
    assert same(dict(model.state_dict()), dict(straight_model.state_dict()))
    assert same(step.state_dict(), straight.state_dict())


def test_the_configuration_wins_over_the_saved_settings() -> None:
    first = TrainStep(linear(), OptimConfig(lr=0.1, weight_decay=0.1), batches_per_epoch=2)
    train(first, batches(1))
    step = TrainStep(linear(), OptimConfig(lr=0.2, weight_decay=0.3, betas=(0.5, 0.6)), batches_per_epoch=2)
    step.load_state_dict(through_a_file(first.state_dict()))
    assert [(g["weight_decay"], g["betas"]) for g in step.optimizer.param_groups] == [
        (0.3, (0.5, 0.6)),
        (0, (0.5, 0.6)),
    ]
    train(step, batches(1))
    assert step.optimizer.param_groups[0]["lr"] == pytest.approx(step.lr)
    assert step.count == 2


def test_a_state_of_another_optimizer_is_refused() -> None:
    state = TrainStep(linear(), OptimConfig(**SGD), batches_per_epoch=2).state_dict()
    step = TrainStep(linear(), OptimConfig(name="adamw"), batches_per_epoch=2)
    with pytest.raises(ValueError, match=r"saved with optimizer 'sgd'.*optim\.name=sgd"):
        step.load_state_dict(state)


def test_a_state_of_other_parameters_is_refused() -> None:
    state = TrainStep(linear(), OptimConfig(**SGD), batches_per_epoch=2).state_dict()
    frozen = linear()
    frozen.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="bias"):
        TrainStep(frozen, OptimConfig(**SGD), batches_per_epoch=2).load_state_dict(state)


def test_a_resumed_run_that_now_keeps_an_average_starts_it_at_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    first_model = linear()
    first = TrainStep(first_model, OptimConfig(**SGD), batches_per_epoch=2)
    train(first, batches(2))
    model = linear()
    step = TrainStep(model, OptimConfig(**SGD, ema=0.9), batches_per_epoch=2)
    model.load_state_dict(first_model.state_dict())
    step.load_state_dict(first.state_dict())
    assert "no moving average" in caplog.text
    assert torch.equal(step.eval_model.weight, first_model.weight)


@pytest.mark.parametrize(("epoch", "accumulate", "warns"), [(4, 1, False), (16, 4, False), (16, 2, True)])
def test_resuming_with_other_batches_keeps_the_place(
    epoch: int, accumulate: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Four steps of two micro-batches each, stopped in the second: the place in the epoch is kept."""
    first = TrainStep(linear(), OptimConfig(**SGD, accumulate=2), batches_per_epoch=8)
    train(first, batches(4))
    step = TrainStep(linear(), OptimConfig(**SGD, accumulate=accumulate), batches_per_epoch=epoch)
    step.load_state_dict(through_a_file(first.state_dict()))
    assert ("the schedule goes on from step 2" in caplog.text) == warns
    train(step, batches(epoch // 2))
    assert step.count == 2 + (epoch // 2) // accumulate
    assert step._batch == 0


def test_gradients_that_cannot_be_taken_over_are_dropped_aloud(caplog: pytest.LogCaptureFixture) -> None:
    first = TrainStep(linear(), OptimConfig(**SGD, accumulate=4), batches_per_epoch=8)
    train(first, batches(3))
    step = TrainStep(linear(), OptimConfig(**SGD, accumulate=2), batches_per_epoch=8)
    step.load_state_dict(through_a_file(first.state_dict()))
    assert "begins anew" in caplog.text
    assert [norm is None for norm in train(step, batches(5))] == [True, False, True, False, False]


# ------------------------------------------------------------------------------------------- nothing waits for the GPU


class NoReading(TorchDispatchMode):
    """Fails where a number leaves a tensor for Python: `.item()`, `if tensor`, `float(tensor)`, `.tolist()`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        forbidden = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
        assert func not in forbidden, f"{func} makes the host wait for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise AssertionError("a tensor was read on the host")

    with monkeypatch.context() as patch, NoReading():
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, name, refuse)
        yield


def test_the_guard_itself_works(no_reading: None) -> None:
    with pytest.raises(AssertionError):
        torch.ones(1).item()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_step_never_reads_a_tensor(name: str, precision: Any, no_reading: None) -> None:
    cfg = OptimConfig(name=name, accumulate=2, clip_norm=1.0, ema=0.9)
    step = TrainStep(net(), cfg, batches_per_epoch=5, precision=precision)
    norms = train(step, clips(10))
    assert sum(norm is not None for norm in norms) == step.count == 6
    assert step.lr > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_no_hidden_synchronization_on_a_gpu(name: str, precision: Any) -> None:
    cfg = OptimConfig(name=name, accumulate=2, clip_norm=1.0, ema=0.9)
    step = TrainStep(net().cuda(), cfg, batches_per_epoch=4, precision=precision, channels_last=True)
    data = [(x.cuda(), y.cuda()) for x, y in clips(8)]
    train(step, data[:4])  # lazy initializations may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        norms = train(step, data[4:])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert norms[-1] is not None
    assert torch.isfinite(norms[-1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_the_steps_of_a_cpu() -> None:
    results = []
    for device in ("cpu", "cuda"):
        model = net().to(device)
        model.drop.p = 0.0
        cfg = OptimConfig(name="sgd", lr=0.1, accumulate=2, clip_norm=1.0, ema=0.9)
        step = TrainStep(model, cfg, batches_per_epoch=4, precision="fp32", channels_last=device == "cuda")
        train(step, [(x.to(device), y.to(device)) for x, y in clips(4)])
        results.append({name: value.cpu() for name, value in step.eval_model.state_dict().items()})
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


# ---------------------------------------------------------------------------------------------- compile, channels_last


def test_without_a_compiler_the_step_says_why_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile_nothing(function: Callable) -> Callable:
        def run(*_: object) -> None:
            raise RuntimeError("\nno working C++ compiler found: g++\nsecond line")

        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    model = linear()
    before = model.weight.detach().clone()
    step = TrainStep(model, OptimConfig(**SGD), batches_per_epoch=2, compile=True)
    assert "cannot compile for cpu: no working C++ compiler found: g++" in caplog.text
    assert "second line" not in caplog.text
    train(step, batches(2))
    assert not torch.equal(model.weight, before)


def test_a_compiled_step_equals_a_plain_one(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    models = linear(), linear()
    for model, compile in zip(models, (False, True), strict=True):
        step = TrainStep(model, OptimConfig(**SGD, accumulate=2, ema=0.9), batches_per_epoch=4, compile=compile)
        with caplog.at_level(logging.WARNING):
            train(step, batches(4))
        assert not [record for record in caplog.records if record.name == "core.step"]
        assert step.model is model
        assert set(step.state_dict()["average"]) == {"weight", "bias"}
    torch.testing.assert_close(models[1].weight, models[0].weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("other", [True, False], ids=["same format", "other format"])
def test_a_run_in_channels_last_resumes_in_mid_step(name: str, other: bool) -> None:
    """Gradients and moments come back in the format of the parameters, also when that is another one now."""
    cfg = OptimConfig(name=name, lr=0.01, schedule="constant", accumulate=2)
    data = clips(6)
    straight, first, resumed = net().eval(), net().eval(), net().eval()
    train(TrainStep(straight, cfg, batches_per_epoch=6, channels_last=True), data)
    step = TrainStep(first, cfg, batches_per_epoch=6, channels_last=True)
    train(step, data[:3])
    again = TrainStep(resumed, cfg, batches_per_epoch=6, channels_last=other)
    resumed.load_state_dict(first.state_dict())
    again.load_state_dict(through_a_file(step.state_dict()))
    train(again, data[3:])
    for key, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=0, atol=0 if other else 1e-5, msg=key)


def test_channels_last_moves_convolutions_and_changes_no_result() -> None:
    results = []
    for channels_last in (False, True):
        model = net()
        model.drop.p = 0.0
        step = TrainStep(model, OptimConfig(**SGD, ema=0.9), batches_per_epoch=2, channels_last=channels_last)
        train(step, clips(2))
        assert model.conv.weight.is_contiguous(memory_format=torch.channels_last_3d) == channels_last
        results.append(step.eval_model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-5, msg=name)
