"""Processes: who we are among them, what they tell each other, and how a model is spread over them.

The only file that imports `torch.distributed`. One process is not a special case: without a launcher's variables
`init` makes a world of one, no process group exists, and every function here answers for that one process.
Two groups exist otherwise: the default one carries gradients (NCCL on CUDA, gloo elsewhere), and a gloo group carries
control and Python objects, so that asking a question never waits for the GPU.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
Strategy = Literal["ddp", "fsdp"]

# A dead process is noticed at once by gloo (its connection breaks) and by the launcher. The times below are for a
# process that hangs: the first bounds every gradient exchange, the second lets the others wait in `main_first`.
DATA_TIMEOUT_S = 600.0
CONTROL_TIMEOUT_S = 3600.0
CLOSE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, `local_rank` on its machine, and the device it works on."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Place(NamedTuple):
    """What a launcher says about this process: its numbers, and where process 0 listens."""

    rank: int
    local_rank: int
    size: int
    address: str
    port: int


_world = World()
_control: dist.ProcessGroup | None = None


# ---------------------------------------------------------------------------------------------------------- the world


def resolve(env: Mapping[str, str]) -> Place:
    """Our place according to torchrun's variables, else SLURM's (rank is SLURM_PROCID), else alone.

    Raises: ValueError when a launcher's variables are incomplete or no numbers.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        rank, size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
        local = _number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank
        address, port = env.get("MASTER_ADDR", ""), _number(env, "MASTER_PORT") if size > 1 else 0
        if size > 1 and not address:
            raise ValueError("environment variable MASTER_ADDR is missing; torchrun sets it to the host of process 0")
    elif "SLURM_PROCID" in env and ("SLURM_STEP_NUM_TASKS" in env or "SLURM_NTASKS" in env):
        # The step (srun) may be smaller than the job (sbatch), so its own variables come first.
        rank = _number(env, "SLURM_PROCID")
        size = _number(env, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS")
        local = _number(env, "SLURM_LOCALID") if "SLURM_LOCALID" in env else 0
        nodes = hosts(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "127.0.0.1")
        address = env.get("MASTER_ADDR") or nodes[0]
        # Every process of a job finds the same port without talking, and two jobs on one machine differ.
        job = int(env.get("SLURM_JOB_ID", "0"))
        port = _number(env, "MASTER_PORT") if "MASTER_PORT" in env else 15_000 + job % 15_000
    else:
        return Place(0, 0, 1, "127.0.0.1", 0)
    if not 0 <= rank < size:
        raise ValueError(f"the launcher says rank {rank} of {size} processes; expected 0 <= rank < size")
    return Place(rank, local, size, address, port)


def hosts(nodelist: str) -> list[str]:
    """The host names of a SLURM list: `node[01-03,07],gpu5` is node01, node02, node03, node07, gpu5.

    Raises: ValueError for a list that SLURM would not write.
    """
    # Commas inside brackets belong to the range, those outside separate names.
    names = [name for item in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", nodelist) for name in _expand(item)]
    if not names or nodelist.count("[") != nodelist.count("]"):
        raise ValueError(f"SLURM node list {nodelist!r} is not understood; expected something like node[01-03,07]")
    return names


def _expand(name: str) -> list[str]:
    """All names that a name with bracketed ranges stands for, brackets expanded from left to right."""
    head, bracket, rest = name.partition("[")
    if not bracket:
        return [name]
    ranges, _, tail = rest.partition("]")
    numbers: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        last = last or first
        if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
            raise ValueError(f"SLURM node list has the range {part!r}; expected 7 or 01-03")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [head + number + end for number in numbers for end in _expand(tail)]


def _number(env: Mapping[str, str], name: str) -> int:
    value = env.get(name, "")
    if not value.isdigit():
        what = f"is {value!r}" if value else "is missing"
        raise ValueError(f"environment variable {name} {what}; a launcher (torchrun, srun) sets it to a whole number")
    return int(value)


def init(device: str | torch.device | None = None, *, timeout_s: float = DATA_TIMEOUT_S) -> World:
    """Join the other processes; does nothing when already joined.

    `device` None or "auto" is CUDA where there is one, else the CPU; with several processes on CUDA each takes the
    GPU of its local rank. `timeout_s` bounds how long a gradient exchange waits for a process that hangs.

    Raises: ValueError for a device that is not there; RuntimeError when the other processes cannot be reached.
    """
    global _world, _control
    if dist.is_initialized():
        return _world
    place = resolve(os.environ)
    chosen = _device(device, place)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    _world = World(place.rank, place.local_rank, place.size, chosen)
    if place.size == 1:
        return _world
    cuda = chosen.type == "cuda"
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=f"tcp://{place.address}:{place.port}" if "RANK" not in os.environ else "env://",
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=timeout_s),
            device_id=chosen if cuda else None,
        )
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=CONTROL_TIMEOUT_S))
        assert not isinstance(group, int), "every process belongs to the control group"
        _control = group
    except (dist.DistError, ValueError, OSError) as error:
        shutdown()
        raise RuntimeError(
            f"process {place.rank} of {place.size} could not join the others at {place.address}:{place.port} "
            f"({error}); check that as many processes were started (torchrun, or srun inside the SLURM job), that the "
            "machines reach each other on that port, and that nothing else uses it (MASTER_PORT chooses another)"
        ) from error
    return _world


def _device(wish: str | torch.device | None, place: Place) -> torch.device:
    """The device of this process."""
    if wish is None or str(wish) == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wish)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if count == 0:
        raise ValueError(f"device {str(wish)!r} was asked for, but no CUDA device is visible; use device=cpu or auto")
    if device.index is not None and place.size > 1:
        raise ValueError(f"device {str(wish)!r} names one GPU for {place.size} processes; use device=cuda")
    # A launcher may show each process only its own GPU (SLURM --gpus-per-task); it is number 0 then.
    index = device.index if device.index is not None else 0 if count == 1 else place.local_rank
    if index >= count:
        raise ValueError(f"process {place.local_rank} of this machine needs GPU {index}, but {count} are visible")
    return torch.device("cuda", index)


def world() -> World:
    """This process among all; a world of one on the CPU before `init`."""
    return _world


def is_main() -> bool:
    """Is this the process that writes files?"""
    return _world.rank == 0


def shutdown() -> None:
    """Leave the other processes, after success or an exception alike; never hangs.

    Closing the connections tells waiting peers at once that we are gone. NCCL may wait here for peers that will not
    come, so the closing runs on a thread that is left behind after a few seconds.
    """
    global _world, _control
    if dist.is_initialized():
        closing = threading.Thread(target=dist.destroy_process_group, name="close process group", daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)
    _world, _control = World(), None


# ------------------------------------------------------------------------------------------------------- conversation


def barrier() -> None:
    """Wait until every process is here."""
    if _world.size > 1:
        dist.barrier(group=_control)


def gather(value: T) -> list[T]:
    """The values of all processes in order of rank, on every process; `value` is anything that pickles, CPU tensors."""
    if _world.size == 1:
        return [value]
    values: list[Any] = [None] * _world.size
    dist.all_gather_object(values, value, group=_control)
    return values


def broadcast(value: T) -> T:
    """The main process's value, on every process; `value` is anything that pickles, tensors on the CPU."""
    if _world.size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_control)
    return values[0]


def any_true(flag: bool) -> bool:
    """Is the flag set on any process? The same answer everywhere, over the CPU."""
    if _world.size == 1:
        return bool(flag)
    votes = torch.tensor([int(flag)], dtype=torch.int32)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=_control)
    return bool(votes.item())


def mean(values: Mapping[str, float | Tensor]) -> dict[str, float]:
    """The mean over processes of each named number, in double precision; device tensors come over in one transfer.

    Raises: ValueError on every process when the names differ between processes.
    """
    rows = gather(dict(zip(values, _numbers(list(values.values())), strict=True)))
    for rank, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            differing = sorted(row.keys() ^ rows[0].keys())
            raise ValueError(f"processes 0 and {rank} report different values: {', '.join(differing)} is on one only")
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in values}


def _numbers(values: Sequence[float | Tensor]) -> list[float]:
    """Numbers and one-element tensors as floats, with one transfer from the device for all tensors on it."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack([t.detach().double().reshape(()) for t in tensors]).tolist() if tensors else ())
    return [next(read) if isinstance(value, Tensor) else float(value) for value in values]


def gather_rows(tensor: Tensor) -> Tensor:
    """(N, ...) of every process, each its own N -> (sum of N, ...) in order of rank, on all; any dtype, no gradient.

    Raises: ValueError on every process when dtypes or the shapes of rows differ.
    """
    if tensor.dim() == 0:
        raise ValueError("gather_rows was given a scalar; expected (N, ...), e.g. value[None]")
    if _world.size == 1:
        return tensor.detach()
    kinds = gather((tensor.dtype, tuple(tensor.shape[1:]), len(tensor)))
    if any(kind[:2] != kinds[0][:2] for kind in kinds):
        listed = "; ".join(f"process {rank}: {dtype} (N, *{shape})" for rank, (dtype, shape, _) in enumerate(kinds))
        raise ValueError(f"gather_rows needs one dtype and one shape of rows on all processes, got {listed}")
    # Bytes, padded to the longest: every dtype travels exactly, also those that gloo does not know.
    row = math.prod(tensor.shape[1:]) * tensor.element_size()
    longest = max(count for *_, count in kinds)
    mine = torch.zeros(longest * row, dtype=torch.uint8)
    mine[: len(tensor) * row] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    received = [torch.empty_like(mine) for _ in kinds]
    dist.all_gather(received, mine, group=_control)
    parts = [data[: count * row] for data, (*_, count) in zip(received, kinds, strict=True)]
    return torch.cat(parts).view(tensor.dtype).reshape(-1, *tensor.shape[1:]).to(tensor.device)


def total(tensor: Tensor) -> Tensor:
    """The sum over processes of equally shaped tensors, on their device, without waiting for it; no gradient."""
    summed = tensor.detach().clone()
    if _world.size > 1:
        dist.all_reduce(summed)
    return summed


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block, then all others do: to prepare data once, on a disk that all of them see.

    Raises: RuntimeError on the others when the block failed on the main process.
    """
    if not is_main() and not broadcast(False):
        raise RuntimeError("the main process failed in main_first; its traceback says why")
    done = False
    try:
        yield
        done = True
    finally:
        if is_main():
            broadcast(done)


# -------------------------------------------------------------------------------------------------------------- models


def wrap(
    model: nn.Module, strategy: Strategy = "ddp", blocks: Sequence[type[nn.Module]] = (), sync_bn: bool = False
) -> nn.Module:
    """The model spread over all processes, equal to the main process's; alone, the model itself.

    `ddp` copies it to each process. `fsdp` shards parameters, gradients and optimizer state, gathering the modules of
    the classes in `blocks` one by one; it changes the model in place and must come before the optimizer is built. The
    model may still be on the CPU then, from where each block goes to the device just before it is sharded, and on all
    but the main process it may be empty (on the meta device): no process has to hold more than it can.
    `sync_bn` lets batch normalization see the whole global batch (CUDA only). Call `no_sync` around each forward.

    Raises: ValueError for an unknown strategy, or a model that is not on this process's device.
    """
    if strategy not in ("ddp", "fsdp"):
        raise ValueError(f"strategy is {strategy!r}; expected ddp or fsdp")
    if _world.size == 1:
        return model
    device = _world.device
    away = sorted({str(p.device) for p in model.parameters()} - {str(device)})
    if away and strategy == "ddp":
        raise ValueError(f"the model has parameters on {', '.join(away)}, this process works on {device}; "
                         f"call model.to({str(device)!r}) first")  # fmt: skip
    if sync_bn and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if strategy == "fsdp":
        return _shard(model, tuple(blocks))
    if not any(p.requires_grad for p in model.parameters()):
        return model  # nothing to exchange, which DDP takes for an error
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def _shard(model: nn.Module, blocks: tuple[type[nn.Module], ...]) -> nn.Module:
    """FSDP2 over all processes, block by block, then what remains."""
    from torch.distributed.device_mesh import init_device_mesh  # seconds to import, and few runs need them
    from torch.distributed.fsdp import fully_shard

    found = [module for module in model.modules() if module is not model and blocks and isinstance(module, blocks)]
    if blocks and not found:
        raise ValueError(f"the model has no module of the classes {', '.join(c.__name__ for c in blocks)} in blocks")
    mesh = init_device_mesh(_world.device.type, (_world.size,))
    for module in (*found, model):
        _settle(module)
        fully_shard(module, mesh=mesh)
    return model


def _settle(module: nn.Module) -> None:
    """What of a module is not sharded yet: onto our device, with the main process's values.

    DDP sends values by itself, FSDP trusts that all processes built the same.
    """
    for part in module.modules():
        values = (*part.parameters(recurse=False), *part.buffers(recurse=False))
        if any(value.is_meta for value in values):
            part.to_empty(device=_world.device, recurse=False)
    module.to(_world.device)
    for tensor in chain((p.detach() for p in module.parameters()), module.buffers()):
        if not hasattr(tensor, "full_tensor"):  # a shard, which all agree on already
            dist.broadcast(tensor, src=0)


def unwrap(model: nn.Module) -> nn.Module:
    """The model as its project built it, without DDP and torch.compile around it."""
    while True:
        name = "module" if isinstance(model, DistributedDataParallel) else "_orig_mod"
        inner = getattr(model, name, None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def no_sync(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Around a forward pass: its gradients stay on this process if `enabled`, else they are averaged over all.

    The backward pass may come after the block. Every forward pass of a micro-batch goes through here, so that the last
    one (enabled=False) turns the exchange on again.
    """
    while not isinstance(model, DistributedDataParallel) and isinstance(
        inner := getattr(model, "_orig_mod", None), nn.Module
    ):
        model = inner
    if isinstance(model, DistributedDataParallel) and enabled:
        with model.no_sync():
            yield
        return
    sharded: Any = model
    if hasattr(sharded, "set_requires_gradient_sync"):  # FSDP reads it in the backward pass, so it stays set
        sharded.set_requires_gradient_sync(not enabled)
    yield


def sync_buffers(model: nn.Module) -> None:
    """Give every process the main process's buffers, so that all evaluate one model; call it before evaluating.

    DDP copies buffers (the statistics of batch normalization) at the start of a training step only, so after the last
    one they differ.
    """
    if _world.size > 1:
        for buffer in unwrap(model).buffers():
            dist.broadcast(buffer, src=0)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every process holds all parameters of an FSDP model, so that each may run it as often as it likes.

    Otherwise all must run it equally often, which the batches of an evaluation do not allow. All enter and leave; no
    training inside. Other models need none of this and pass through.
    """
    shards: list[Any] = [module for module in model.modules() if hasattr(module, "set_reshard_after_forward")]
    for shard in shards:
        shard.unshard()
        shard.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for shard in shards:
            shard.set_reshard_after_forward(shard is not shards[0], recurse=False)  # the root stays, as FSDP has it
            shard.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of an FSDP shard (all processes must ask), e.g. a gradient norm; any other tensor as it is."""
    shard: Any = tensor  # a DTensor, whose class takes seconds to import
    return shard.full_tensor() if hasattr(shard, "full_tensor") else tensor


# ----------------------------------------------------------------------------------------------------- their full state


def full_state(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, main_only: bool = False
) -> dict[str, Any]:
    """{"model": ..., "optimizer": ...} with whole CPU tensors under the plain model's names; all processes must ask.

    DDP, FSDP and a single process give the same. The optimizer's part is {"state": {parameter name: {...}}, "groups":
    [{"params": names, ...}]}: names outlive the order of parameters. With `main_only` the other processes take part
    but keep nothing. As with `state_dict`, CPU tensors may share memory with the model.
    (`torch.distributed.checkpoint.state_dict` has the same aim, but takes an optimizer step when asked before the first
    one, and its AdamW counts that step.)
    """
    keep = is_main() or not main_only
    plain = unwrap(model)
    state: dict[str, Any] = {"model": _cpu(plain.state_dict(), keep)}
    if optimizer is not None:
        names = _names(plain, optimizer)
        groups = [group | {"params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]
        moments = {name: _cpu(optimizer.state[p], keep) for p, name in names.items() if p in optimizer.state}
        state["optimizer"] = {"state": moments, "groups": groups}
    return state if keep else {}


def load_full_state(model: nn.Module, optimizer: torch.optim.Optimizer | None, state: Mapping[str, Any]) -> None:
    """Put back what `full_state` gave, into a model and optimizer spread in any way; `state` is whole on every process.

    Raises: ValueError naming the parameters when the model or the optimizer is another one.
    """
    plain = unwrap(model)
    own, given = plain.state_dict(), state["model"]
    problems = [f"missing {name}" for name in own if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in own]
    for name in own.keys() & given.keys():
        ours, theirs = (getattr(values[name], "shape", None) for values in (own, given))
        if ours != theirs:
            problems.append(f"{name} is {ours}, the state has {theirs}")
    if problems:
        raise ValueError("the state belongs to another model: " + "; ".join(problems[:10]))
    plain.load_state_dict({name: _cut(value, own[name]) for name, value in given.items()})
    if optimizer is not None:
        _load_optimizer(optimizer, _names(plain, optimizer), state["optimizer"])


def _load_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], state: Mapping[str, Any]) -> None:
    """From names back to the numbers that `Optimizer.load_state_dict` wants: parameters counted through the groups."""
    ours = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    theirs = [group["params"] for group in state["groups"]]
    if [set(group) for group in ours] != [set(group) for group in theirs]:
        differing = sorted(set(chain(*ours)) ^ set(chain(*theirs)))
        what = f"differing parameters: {', '.join(differing[:10])}" if differing else "other groups"
        raise ValueError(f"the state belongs to another optimizer, {len(theirs)} groups, ours has {len(ours)}; {what}")
    numbers = {name: number for number, name in enumerate(chain(*ours))}
    params = {name: p for p, name in names.items()}
    optimizer.load_state_dict(
        {
            "state": {
                numbers[name]: {
                    key: _laid_out(_cut(value, params[name]), params[name]) for key, value in moments.items()
                }
                for name, moments in state["state"].items()
            },
            "param_groups": [
                group | {"params": [numbers[name] for name in mine]}
                for group, mine in zip(state["groups"], ours, strict=True)
            ],
        }
    )


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    """The names of the optimizer's parameters, in its order."""
    names = {p: name for name, p in model.named_parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if any(p not in names for p in held):
        raise ValueError("the optimizer holds parameters that the model has not; wrap with fsdp before building it")
    return {p: names[p] for p in held}


def _cpu(values: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """Whole CPU tensors; every process takes part in making them, those that do not keep them drop each at once."""
    whole_values = ((name, whole(v.detach()) if isinstance(v, Tensor) else v) for name, v in values.items())
    return {name: v.cpu() if isinstance(v, Tensor) else v for name, v in whole_values if keep}


def _laid_out(value: Any, own: Tensor) -> Any:
    """A moment in the memory format of its parameter: fused kernels walk through both as if they were one list."""
    if not isinstance(value, Tensor) or value.shape != own.shape or value.stride() == own.stride():
        return value
    return torch.empty_like(own, dtype=value.dtype).copy_(value)


def _cut(value: Any, own: Any) -> Any:
    """The value as our own tensor is spread: this process's shard of it under FSDP, else the value itself."""
    if not hasattr(own, "full_tensor") or not isinstance(value, Tensor) or value.shape != own.shape:
        return value  # step counts stay single numbers also under FSDP
    from torch.distributed.tensor import distribute_tensor

    # Every process has the whole, so each cuts its own part and nothing is sent.
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
