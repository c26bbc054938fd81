"""core.dist with one, two and three processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core import dist
from tests.dist.pool import Team
from tests.support import ROOT

# ------------------------------------------------------------------------------------------------------- who we are


def test_alone_without_a_launcher() -> None:
    assert dist.resolve({}) == (0, 0, 1, "127.0.0.1", 0)


def test_torchrun_variables() -> None:
    env = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "gpu7", "MASTER_PORT": "29511"}
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    assert dist.resolve(env) == (5, 1, 8, "gpu7", 29511)
    assert dist.resolve(env | slurm) == (5, 1, 8, "gpu7", 29511), "torchrun inside a SLURM job counts"


def test_slurm_variables() -> None:
    env = {
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_NODELIST": "node[01-03,07],gpu5",
        "SLURM_JOB_ID": "40123",
    }
    assert dist.resolve(env) == (3, 1, 4, "node01", 15_000 + 40_123 % 15_000)
    assert dist.resolve(env | {"MASTER_PORT": "23456", "MASTER_ADDR": "head"}) == (3, 1, 4, "head", 23456)
    step = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "node07", "SLURM_PROCID": "0"}
    assert dist.resolve(env | step)[2:4] == (1, "node07"), "a step smaller than its job counts"


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("gpu5", ["gpu5"]),
        ("a,b-1", ["a", "b-1"]),
        ("node[01-03,07],gpu5", ["node01", "node02", "node03", "node07", "gpu5"]),
        ("r[1-2]n[08-10]", ["r1n08", "r1n09", "r1n10", "r2n08", "r2n09", "r2n10"]),
        ("n[9-11]-ib", ["n9-ib", "n10-ib", "n11-ib"]),
    ],
)
def test_node_lists(nodelist: str, names: list[str]) -> None:
    assert dist.hosts(nodelist) == names


@pytest.mark.parametrize("nodelist", ["", "n[1-", "n[3-1]", "n[a-b]"])
def test_a_broken_node_list_is_quoted(nodelist: str) -> None:
    with pytest.raises(ValueError, match="SLURM node list"):
        dist.hosts(nodelist)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is missing"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "rank 2 of 2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "MASTER_ADDR is missing"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "MASTER_PORT is missing"),
    ],
)
def test_incomplete_variables_are_named(env: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dist.resolve(env)


def test_one_process_is_not_a_special_case(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    world = dist.init("cpu")
    assert (world.rank, world.local_rank, world.size, world.device) == (0, 0, 1, torch.device("cpu"))
    assert dist.world() == world
    assert dist.is_main()
    assert dist.mean({"loss": torch.tensor([2.5]), "rate": 3}) == {"loss": 2.5, "rate": 3.0}
    assert dist.gather("x") == ["x"]
    assert dist.broadcast("x") == "x"
    assert dist.any_true(True)
    assert not dist.any_true(False)
    rows = torch.arange(6, dtype=torch.int16).reshape(3, 2)
    assert torch.equal(dist.gather_rows(rows), rows)
    counts = torch.tensor([2.0, 3.0], requires_grad=True)
    assert torch.equal(dist.total(counts), counts)
    assert not dist.total(counts).requires_grad
    with dist.main_first():
        pass
    dist.barrier()
    model = nn.Linear(2, 2)
    assert dist.wrap(model, "ddp") is model
    assert dist.wrap(model, "fsdp") is model
    with dist.no_sync(model):
        model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is not None
    dist.shutdown()
    dist.shutdown()


def test_unknown_strategy_and_missing_gpu() -> None:
    with pytest.raises(ValueError, match="expected ddp or fsdp"):
        dist.wrap(nn.Linear(1, 1), "deepspeed")  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device is visible"):
            dist.init("cuda")


# ------------------------------------------------------------------------------------------------------ conversation


def conversation() -> dict[str, Any]:
    world = dist.world()
    rank = world.rank
    order: list[str] = []
    with dist.main_first():
        order.append(f"{rank}@{time.monotonic()}")
        time.sleep(0.1)
        left = time.monotonic()
    dist.barrier()
    return {
        "world": (rank, world.local_rank, world.size, dist.is_main()),
        "mean": dist.mean({"loss": torch.tensor(float(rank + 1)), "count": rank}),
        "gather": dist.gather({"rank": rank, "text": "x" * rank}),
        "broadcast": dist.broadcast(["from", rank]),
        "any": (dist.any_true(rank == 1), dist.any_true(False), dist.any_true(True)),
        "total": dist.total(torch.tensor([1.0, rank])).tolist(),
        "block": (float(order[0].split("@")[1]), left),
    }


def test_conversation_of_two(two: Team) -> None:
    first, second = two(conversation)
    assert first["world"] == (0, 0, 2, True)
    assert second["world"] == (1, 1, 2, False)
    for answer in (first, second):
        assert answer["mean"] == {"loss": 1.5, "count": 0.5}
        assert answer["gather"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "x"}]
        assert answer["broadcast"] == ["from", 0]
        assert answer["any"] == (True, False, True)
        assert answer["total"] == [2.0, 1.0]
    assert first["block"][1] <= second["block"][0], "the main process leaves its block before the other enters"


def uneven_rows(dtype: torch.dtype, sizes: list[int]) -> torch.Tensor:
    rank = dist.world().rank
    start = sum(sizes[:rank])
    values = torch.arange(start * 3, (start + sizes[rank]) * 3).reshape(-1, 3).remainder(2**7)
    return dist.gather_rows(values.to(dtype))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8, torch.complex64]
)
def test_uneven_rows_keep_order_and_dtype(three: Team, dtype: torch.dtype) -> None:
    sizes = [2, 0, 5]
    expected = torch.arange(7 * 3).reshape(7, 3).to(dtype)
    for answer in three(uneven_rows, dtype, sizes):
        assert answer.dtype == dtype
        assert torch.equal(answer, expected)


def words_of(function: str) -> str:
    rank = dist.world().rank
    try:
        if function == "rows":
            dist.gather_rows(torch.zeros(2, 3 + rank))
        elif function == "mean":
            dist.mean({"loss": 1.0} if rank == 0 else {"loss": 1.0, "extra": 2.0})
        elif function == "main_first":
            with dist.main_first():
                raise OSError("disk full")
    except (ValueError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_disagreements_are_errors_on_every_process(two: Team) -> None:
    for text in two(words_of, "rows"):
        assert "ValueError" in text
        assert "process 1: torch.float32 (N, *(4,))" in text
    for text in two(words_of, "mean"):
        assert "ValueError" in text
        assert "extra" in text
    main, other = two(words_of, "main_first")
    assert main == "OSError: disk full"
    assert other.startswith("RuntimeError: the main process failed in main_first")


# ------------------------------------------------------------------------------------------------------------- models


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.norm(self.linear(x)))


class Net(nn.Module):
    """Two blocks between two layers, the first of which is frozen; widths that two does not divide."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.enter = nn.Linear(5, 7).requires_grad_(False)
        self.blocks = nn.ModuleList([Block(7), Block(7)])
        self.leave = nn.Linear(7, 3)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x)


def make(strategy: str, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = dist.wrap(Net(seed), strategy, blocks=(Block,))  # type: ignore[arg-type]
    leaving = [p for name, p in model.named_parameters() if "leave" in name]
    others = [p for name, p in model.named_parameters() if "leave" not in name and p.requires_grad]
    return model, torch.optim.AdamW([{"params": others, "lr": 1e-2}, {"params": leaving, "weight_decay": 0.0}], lr=3e-2)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, micro: int = 1) -> None:
    """Optimizer steps on 8 samples each; every process takes its own share, in `micro` pieces."""
    world = dist.world()
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 5, generator=generator), torch.randn(8, 3, generator=generator)
        x, y = x.chunk(world.size)[world.rank], y.chunk(world.size)[world.rank]
        for piece, (a, b) in enumerate(zip(x.chunk(micro), y.chunk(micro), strict=True)):
            with dist.no_sync(model, piece < micro - 1):
                loss = (model(a) - b).square().mean() / micro
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(strategy: str, micro: int, path: str = "") -> dict[str, Any]:
    model, optimizer = make(strategy, seed=dist.world().rank)  # each builds another; wrap makes them equal
    fresh = dist.full_state(model, optimizer)["optimizer"]["state"]
    steps(model, optimizer, 0, 3, micro)
    state = dist.full_state(model, optimizer)
    assert fresh == {}, "asking for the state takes no step"
    assert bool(dist.full_state(model, optimizer, main_only=True)) == dist.is_main()
    if path and dist.is_main():
        torch.save(state, path)
    dist.barrier()
    return state


def closest(a: Any, b: Any) -> float:
    """The largest difference between two states of one structure."""
    if isinstance(a, torch.Tensor):
        assert type(a) is type(b) is torch.Tensor
        assert a.shape == b.shape
        return float((a.double() - b.double()).abs().max())
    if isinstance(a, dict):
        assert list(a) == list(b)
        return max((closest(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        return max((closest(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    assert a == b
    return 0.0


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    model, optimizer = make("ddp")
    steps(model, optimizer, 0, 3)
    return dist.full_state(model, optimizer)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("micro", [1, 2])
def test_two_processes_train_as_one(two: Team, alone: dict[str, Any], strategy: str, micro: int) -> None:
    first, second = two(trained, strategy, micro)
    assert closest(first, second) == 0.0
    assert closest(first["model"], alone["model"]) < 1e-6
    assert closest(first["optimizer"], alone["optimizer"]) < 1e-6


def resumed(strategy: str, path: str) -> dict[str, Any]:
    model, optimizer = make(strategy, seed=7)
    dist.load_full_state(model, optimizer, torch.load(path, weights_only=True))
    steps(model, optimizer, 3, 5)
    return dist.full_state(model, optimizer)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_saved_on_two_goes_on_on_one_and_two(two: Team, tmp_path: Path, strategy: str) -> None:
    path = str(tmp_path / "state.pt")
    two(trained, strategy, 1, path)
    one = resumed("ddp", path)
    for other in ("ddp", "fsdp"):
        first, second = two(resumed, other, path)
        assert closest(first, second) == 0.0
        assert closest(first, one) < 1e-6
    model, optimizer = make("ddp")
    steps(model, optimizer, 0, 5)
    assert closest(one, dist.full_state(model, optimizer)) < 1e-6


def test_a_foreign_state_is_refused() -> None:
    model, optimizer = make("ddp")
    state = dist.full_state(model, optimizer)
    with pytest.raises(ValueError, match=r"missing leave\.bias"):
        dist.load_full_state(model, None, {"model": {k: v for k, v in state["model"].items() if k != "leave.bias"}})
    with pytest.raises(ValueError, match=r"leave\.bias is .*\[3\].*\[4\]"):
        dist.load_full_state(model, None, {"model": state["model"] | {"leave.bias": torch.zeros(4)}})
    with pytest.raises(ValueError, match=r"another optimizer.*leave\.bias"):
        dist.load_full_state(model, torch.optim.AdamW(model.blocks.parameters()), state)


def wrapped_kinds() -> dict[str, Any]:
    net = Net(0)
    ddp = dist.wrap(net)
    frozen = Net(0).requires_grad_(False)
    try:
        dist.wrap(Net(0), "fsdp", blocks=(nn.Conv3d,))
        words = ""
    except ValueError as error:
        words = str(error)
    fsdp = dist.wrap(Net(0), "fsdp", blocks=(Block,))
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(dist.world().rank + 3.0)
    dist.sync_buffers(norm)
    fsdp(torch.ones(2, 5)).sum().backward()
    gradient = torch.nn.utils.clip_grad_norm_(fsdp.parameters(), 1e9)
    return {
        "ddp": ddp is not net and dist.unwrap(ddp) is net,
        "compiled": dist.unwrap(torch.compile(ddp)) is net,  # type: ignore[arg-type]
        "frozen": dist.wrap(frozen) is frozen,
        "fsdp": dist.unwrap(fsdp) is fsdp,
        "sharded": local_size(fsdp) < sum(p.numel() for p in net.parameters()),
        "words": words,
        "buffer": norm.running_mean.tolist(),
        "norm": (float(dist.whole(gradient)), type(dist.whole(gradient)) is torch.Tensor),
    }


def values_of_an_empty_net() -> dict[str, torch.Tensor]:
    net = Net(5) if dist.is_main() else Net(0).to("meta")
    net.seen.add_(3)
    state: dict[str, torch.Tensor] = dist.full_state(dist.wrap(net, "fsdp", blocks=(Block,)))["model"]
    return state


def test_other_processes_may_begin_empty(two: Team) -> None:
    """A model too large for each to hold: the main process's values come block by block."""
    expected = Net(5)
    expected.seen.add_(3)
    for state in two(values_of_an_empty_net):
        assert state.keys() == expected.state_dict().keys()
        for name, value in expected.state_dict().items():
            assert torch.equal(state[name], value), name


def test_wrapping(two: Team) -> None:
    net = Net(0)
    net(torch.ones(2, 5)).sum().backward()
    norm = float(torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9))
    for answer in two(wrapped_kinds):
        assert all(answer[key] for key in ("ddp", "compiled", "frozen", "fsdp", "sharded"))
        assert "no module of the classes Conv3d" in answer["words"]
        assert answer["buffer"] == [3.0, 3.0]
        assert answer["norm"] == (pytest.approx(norm, rel=1e-5), True)


def evaluated_unequally() -> tuple[list[float], bool, dict[str, Any]]:
    model, optimizer = make("fsdp")
    before = local_size(model)
    answers = []
    with dist.gathered(model), torch.no_grad():
        for number in range(1 + 3 * dist.world().rank):
            answers.append(float(model(torch.full((1, 5), float(number))).sum()))
    assert local_size(model) == before
    steps(model, optimizer, 0, 3)
    return answers, before < sum(p.numel() for p in model.parameters()), dist.full_state(model, optimizer)


def local_size(model: nn.Module) -> int:
    return sum(p.to_local().numel() for p in model.parameters())  # type: ignore[attr-defined]


@torch.no_grad()
def test_a_gathered_model_runs_unequally_often_and_trains_on(two: Team, alone: dict[str, Any]) -> None:
    net = Net(0)
    expected = [float(net(torch.full((1, 5), float(number))).sum()) for number in range(4)]
    (one, sharded, state), (four, _, _) = two(evaluated_unequally)
    assert sharded
    assert one == pytest.approx(expected[:1], rel=1e-5)
    assert four == pytest.approx(expected, rel=1e-5)
    assert closest(state["model"], alone["model"]) < 1e-6
    with dist.gathered(net):
        assert float(net(torch.ones(1, 5)).sum()) == pytest.approx(expected[1])


# ------------------------------------------------------------------------------------------------------------- endings

FAILING = """
    import sys
    import time

    import torch

    from core import dist

    world = dist.init("cpu")
    try:
        dist.barrier()
        if world.rank == 1:
            raise ValueError("clip 17 has no frames")
        model = dist.wrap(torch.nn.Linear(2, 2))
        for _ in range(10**9):
            model(torch.ones(1, 2)).sum().backward()
            dist.any_true(False)
    finally:
        dist.shutdown()
"""


def test_a_failing_process_ends_the_job_with_its_traceback(tmp_path: Path, two: Team) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(FAILING))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE"))}
    env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    # The limit is the assertion: left alone, the surviving process would train for ever.
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "ValueError: clip 17 has no frames" in ended.stderr


def test_joining_alone_is_an_error_that_says_where(tmp_path: Path) -> None:
    script = tmp_path / "join.py"
    script.write_text('from core import dist\ndist.init("cpu", timeout_s=1)\n')
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE"))}
    env |= {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_JOB_ID": "7"}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode != 0
    last = ended.stderr.strip().splitlines()[-1]
    assert "process 1 of 2 could not join the others at 127.0.0.1:15007" in last
    assert "srun" in last


def _world_size() -> int:
    return dist.world().size


def test_a_call_that_leaves_the_world_does_not_leave_the_next_one_alone(two: Team) -> None:
    """Whole runs leave at their end; the comparisons of later tests would otherwise be between single processes."""
    two(dist.shutdown)
    assert two(_world_size) == [2, 2]
