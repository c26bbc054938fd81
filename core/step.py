"""One optimizer step made of one or more micro-batches: precision, accumulation, clipping, schedule and average."""

import copy
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from core import dist, optim

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_log = logging.getLogger(__name__)


class TrainStep:
    """Turns losses into steps of the optimizer.

    ```
    with step.forward() as net:
        loss = criterion(net(batch["video"]), batch)
    norm = step.backward(loss)
    ```

    `cfg.accumulate` micro-batches make one step: its gradient is the mean over them and over all processes, exchanged
    once. An epoch of `batches_per_epoch` micro-batches that does not divide evenly ends with a step of the remaining
    ones, whose gradient is their mean; no step spans two epochs. Nothing here waits for the GPU.

    The model has to be on its device and its parameters frozen as wanted. `precision="auto"` is bf16 where the GPU has
    it, else fp32. `rules` go to `optim.groups`, `blocks` to `dist.wrap`; `factor(step)` replaces the schedule of `cfg`
    by a paper's own. `channels_last` lays out convolution weights as the fastest kernels of most GPUs want them.

    Raises:
        ValueError: for fewer than one batch per epoch, an unknown precision, or a model with nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: optim.OptimConfig,
        *,
        batches_per_epoch: int,
        precision: Precision = "auto",
        strategy: dist.Strategy = "ddp",
        compile: bool = False,
        sync_bn: bool = False,
        channels_last: bool = False,
        blocks: Sequence[type[nn.Module]] = (),
        rules: Sequence[optim.Rule] = (),
        factor: Callable[[int], float] | None = None,
    ) -> None:
        if batches_per_epoch < 1:
            raise ValueError(f"batches_per_epoch is {batches_per_epoch}: the training set is smaller than one batch")
        self.cfg = cfg
        self.batches_per_epoch = batches_per_epoch
        self.steps_per_epoch = math.ceil(batches_per_epoch / cfg.accumulate)
        self.total = cfg.epochs * self.steps_per_epoch
        self.count = 0
        self.averaged = 0  # updates of the moving average
        self._sharded = strategy == "fsdp" and dist.world().size > 1  # it goes to the device when it is wrapped
        first = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.device = dist.world().device if self._sharded else first
        self.precision = resolve_precision(precision, self.device)
        self._factor = factor
        self._batch = 0  # micro-batches done in this epoch
        self._micro = 0  # of them, those in the step under way

        if channels_last:
            _lay_channels_last(model)
        self.average = copy.deepcopy(model).eval() if cfg.ema else None
        wrapped = dist.wrap(model, strategy, blocks, sync_bn)
        self.model = dist.unwrap(wrapped)
        if self.average is not None:
            if strategy == "fsdp":
                self.average = dist.wrap(self.average, strategy, blocks)
            else:  # what the main process sent to the others when the model was wrapped
                self.average.load_state_dict(self.model.state_dict())
            self.average.requires_grad_(False)
        self.optimizer = optim.build(self.model, cfg, rules)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._net = _compiled(wrapped, self.device) if compile else wrapped

    @property
    def lr(self) -> float:
        """The learning rate of the latest optimizer step; of the first one before it."""
        return self._lr(max(self.count - 1, 0))

    @property
    def eval_model(self) -> nn.Module:
        """The model to evaluate and to publish, without wrappers: the moving average when there is one.

        With several processes `dist.sync_buffers` makes its batch statistics equal before an evaluation.
        """
        return self.model if self.average is None else self.average

    @contextmanager
    def forward(self) -> Iterator[nn.Module]:
        """The network to call, under autocast; gradients stay on this process until the last micro-batch of a step."""
        with (
            dist.no_sync(self._net, enabled=self._micro + 1 < self.window),
            autocast(self.precision, self.device),
        ):
            yield self._net

    def backward(self, loss: Tensor) -> Tensor | None:
        """Add the gradient of one micro-batch; with the last one of a step, take it and return the gradient's norm.

        The norm is that before clipping, over all processes, a tensor on the device. A step whose fp16 gradients
        overflow changes no parameter and lowers the loss scale; it counts like any other, since only the GPU knows.

        Raises:
            ValueError: when the loss is no scalar.
        """
        if loss.numel() != 1:
            raise ValueError(f"the loss has shape {tuple(loss.shape)}; expected a scalar, e.g. loss.mean()")
        self.scaler.scale(loss / self.window).backward()
        last = self._micro + 1 == self.window
        self._micro = 0 if last else self._micro + 1
        self._batch = (self._batch + 1) % self.batches_per_epoch
        norm = self._update() if last else None
        if self.average is not None and (last or self.cfg.ema_per == "batch"):
            self.averaged += 1
            _follow(self.average, self.model, ema_decay(self.averaged, self.cfg))
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model: optimizer, loss scale, average, position, gradients of a step under way.

        All processes have to ask; only the main one gets the large parts. Gradients not yet exchanged are saved as
        their mean, from which any number of processes ends the step; under FSDP they are out of reach, and a resumed
        run begins that step anew.
        """
        whole = dist.full_state(self.model, self.optimizer, main_only=True)
        average = None if self.average is None else dist.full_state(self.average, main_only=True)
        state = {
            "name": self.cfg.name,
            "optimizer": whole.get("optimizer"),
            "scaler": self.scaler.state_dict(),
            "average": None if average is None else average.get("model"),
            "count": self.count,
            "averaged": self.averaged,
            "batch": self._batch,
            "micro": self._micro,
            "batches_per_epoch": self.batches_per_epoch,
            "accumulate": self.cfg.accumulate,
            "precision": self.precision,
        }
        if self._micro and not self._sharded:
            grads = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
            state["gradients"] = {name: dist.gather_rows(grad[None]).mean(0).cpu() for name, grad in grads.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; learning rates and other settings stay those of `cfg`, also where they differ.

        Raises:
            ValueError: when `state` belongs to another optimizer or other parameters.
        """
        if state["name"] != self.cfg.name:
            raise ValueError(
                f"the state was saved with optimizer {state['name']!r}, the configuration says {self.cfg.name!r}; set "
                f"optim.name={state['name']} to resume, or start another run from the saved weights"
            )
        settings = [{key: value for key, value in g.items() if key != "params"} for g in self.optimizer.param_groups]
        own = dist.full_state(self.model)["model"]
        dist.load_full_state(self.model, self.optimizer, {"model": own, "optimizer": state["optimizer"]})
        for group, values in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(values)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            if state["average"] is None:
                _log.warning("the checkpoint has no moving average (optim.ema was 0); it starts at the current weights")
            dist.load_full_state(self.average, None, {"model": state["average"] or own})
        self.count = state["count"]
        self.averaged = state.get("averaged", self.count)  # older checkpoints counted both as one
        self._load_position(state)

    @property
    def window(self) -> int:
        """Micro-batches in the step under way; fewer than `accumulate` at the end of an epoch.

        A loss times `window` makes the gradient of a step the sum over its micro-batches instead of their mean.
        """
        return self._micro + min(self.cfg.accumulate - self._micro, self.batches_per_epoch - self._batch)

    def _lr(self, step: int) -> float:
        if self._factor is not None:
            return self.cfg.lr * self._factor(step)
        return self.cfg.lr * optim.lr_factor(step, self.cfg, self.total, self.steps_per_epoch)

    def _update(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = dist.whole(get_total_norm([p.grad for p in params if p.grad is not None]))
        if self.cfg.clip_norm:
            clip_grads_with_norm_(params, self.cfg.clip_norm, norm)
        optim.schedule(self.optimizer, self._lr(self.count))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.count += 1
        return norm

    def _load_position(self, state: Mapping[str, Any]) -> None:
        """The place in the epoch, and the gradients of a step under way unless steps are made differently now."""
        ours = {
            "batches_per_epoch": self.batches_per_epoch, "accumulate": self.cfg.accumulate, "precision": self.precision
        }  # fmt: skip
        same = all(state[key] == value for key, value in ours.items())
        self._batch = round(state["batch"] * self.batches_per_epoch / state["batches_per_epoch"])
        self._batch %= self.batches_per_epoch
        gradients = state.get("gradients")
        self._micro = state["micro"] if same and gradients is not None else 0
        self.optimizer.zero_grad(set_to_none=True)
        if self._micro and gradients is not None:
            named = dict(self.model.named_parameters())
            for name, grad in gradients.items():
                named[name].grad = torch.empty_like(named[name]).copy_(grad)  # laid out as the fused kernels assume
        elif state["micro"]:
            _log.warning("the step under way when the run was saved begins anew: its gradients cannot be taken over")
        before = math.ceil(state["batches_per_epoch"] / state["accumulate"])
        if before != self.steps_per_epoch:
            _log.warning(
                "an epoch had %d optimizer steps when the run was saved and has %d now; the schedule goes on from step "
                "%d (keep the product of processes, loader.batch_size and optim.accumulate to resume exactly)",
                before, self.steps_per_epoch, self.count,
            )  # fmt: skip


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What "auto" means on `device`: bf16 where a GPU computes in it, else fp32.

    Raises:
        ValueError: for an unknown precision.
    """
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise ValueError(f"precision is {precision!r}; expected auto, fp32, bf16 or fp16")
    if precision != "auto":
        return precision
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if able else "fp32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which a network computes at this precision, for training and for evaluation."""
    precision = resolve_precision(precision, device)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def ema_decay(update: int, cfg: optim.OptimConfig) -> float:
    """The share that the average keeps in its update number `update` (from 1): small at first, then `cfg.ema`."""
    return min(cfg.ema, (1 + update) / (cfg.ema_warmup + update)) if cfg.ema_warmup else cfg.ema


def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model for every parameter and buffer; counters are copied.

    `AveragedModel.update_parameters` does the same, but copies its counter to the device, which waits for the GPU.
    """
    theirs = itertools.chain(average.parameters(), average.buffers())
    ours = itertools.chain(model.parameters(), model.buffers())
    pairs = [(a.detach(), m.detach()) for a, m in zip(theirs, ours, strict=True)]
    real = [(a, m) for a, m in pairs if a.is_floating_point()]
    get_ema_multi_avg_fn(decay)([a for a, _ in real], [m for _, m in real], 0)
    for a, m in pairs:
        if not a.is_floating_point():
            a.copy_(m)


def _lay_channels_last(model: nn.Module) -> None:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])


def _compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """The compiled model, or the model itself and a warning where a one-line function already fails to compile."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.zeros(8, device=device))
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        _log.warning("compile=true has no effect, this machine cannot compile for %s: %s", device.type, reason)
        return model
    return cast(nn.Module, torch.compile(model))
