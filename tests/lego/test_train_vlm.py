"""The language stage through its real command: learning, resuming, LoRA, two processes, little padding."""

from __future__ import annotations

import json
import random
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

from core import config, dist
from core.dist import World
from projects.lego import conversations, train_vlm
from projects.lego.config import VlmConfig
from projects.lego.conversations import Bucketed, waste
from projects.lego.model import vlm_files
from projects.lego.model.vlm import Vlm
from projects.lego.prompts import IGNORED
from tests.dist.pool import Team
from tests.lego.test_vlm import TEXT, VISION
from tests.support import GOLDEN

WORDS = ("opens the drawer with the left hand", "cuts", "the right hand picks up the knife and puts it on the board")


def release(folder: Path, count: int = 8) -> Path:
    """Frames, conversations and a language model to start from."""
    records = []
    for k in range(count):
        image = f"clip{k % 4}/{k}/frame.jpg"
        path = folder / "EgoGen" / "ego4d.fho" / "train" / image
        path.parent.mkdir(parents=True)
        noise = np.random.default_rng(k).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(path)
        turns = [{"from": "human", "value": f"<image>\nhow {k % 3}?"}, {"from": "gpt", "value": WORDS[k % 3]}]
        records.append({"id": str(k), "image": image, "conversations": turns})
    (folder / "curation_from_gpt").mkdir()
    (folder / "curation_from_gpt" / "ego4d_for_tuning_forecasting.json").write_text(json.dumps(records))
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "lego" / "llava_labels")
    vlm_files.save_vlm(Vlm(VISION, TEXT | {"vocab_size": 520}), tokenizer, folder / "start")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return release(tmp_path_factory.mktemp("lego"))


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return [
        f"run.out={out}", f"data.root={data}", f"model.init={data / 'start'}", "loader.workers=0", "run.device=cpu",
        "loader.batch_size=4", "optim.epochs=2", "optim.lr=3e-3", "run.log_every=1", "run.save_every=1", *more,
    ]  # fmt: skip


def rows(out: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_answers_are_learned_and_the_folder_opens(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    metrics = train_vlm.main(arguments(data, out, "optim.epochs=8", "warmup=schedule", "curation.held_out=0.25"))
    assert rows(out, "train/loss")[0] > 5.5
    assert metrics["train/loss_epoch"] < 3.5
    assert metrics["val/loss"] > 0
    assert all(rate > 0 for rate in rows(out, "tflops"))
    assert all(0 < share < 1 for share in rows(out, "mfu"))
    net, _ = vlm_files.open_vlm(out / "vlm")
    start, _ = vlm_files.open_vlm(data / "start")
    for name, value in net.named_parameters():
        changed = not torch.equal(value, start.get_parameter(name))
        assert changed != name.startswith("vision."), name


@pytest.mark.parametrize(("how", "learns"), [("lora", ("projector.", "_proj.weight")), ("projector", ("projector.",))])
def test_less_than_all_may_learn(data: Path, tmp_path: Path, how: str, learns: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    train_vlm.main(arguments(data, out, f"model.train={how}", "model.rank=2", "model.alpha=4"))
    net, _ = vlm_files.open_vlm(out / "vlm")
    start, _ = vlm_files.open_vlm(data / "start")
    for name, value in net.named_parameters():
        free = not name.startswith("vision.") and any(part in name for part in learns)
        assert torch.equal(value, start.get_parameter(name)) != free, name


def test_a_stopped_run_goes_on_bit_for_bit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_vlm.main(arguments(data, tmp_path / "whole"))
    stopped = tmp_path / "stopped"

    def stop(job: object, count: int | None = None) -> bool:
        return count == 3

    with monkeypatch.context() as patched:
        patched.setattr("core.run.Run.stopping", stop)
        assert train_vlm.main(arguments(data, stopped)) == {}
    assert not (stopped / "vlm").exists()
    train_vlm.main(arguments(data, stopped))
    whole, again = (vlm_files.open_vlm(tmp_path / name / "vlm")[0].state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert rows(tmp_path / "whole", "train/loss") == rows(stopped, "train/loss")


def train_here(data: str, out: str, *more: str) -> dict[str, list[float]]:
    """In this process of a pool, which a run must not leave."""
    with mock.patch.object(dist, "shutdown"):
        train_vlm.main(arguments(Path(data), Path(out), "tokens=all", "curation.held_out=0.3", *more))
    return {name: rows(Path(out), name) for name in ("train/loss_epoch", "val/loss", "grad_norm")}


def stop_here(data: str, out: str, *more: str) -> None:
    """The same, stopped after three steps."""

    def stop(job: object, count: int | None = None) -> bool:
        return count == 3

    with mock.patch("core.run.Run.stopping", stop):
        train_here(data, out, *more)


@pytest.mark.dist
@pytest.mark.parametrize(("strategy", "how"), [("ddp", "all"), ("fsdp", "all"), ("ddp", "lora"), ("fsdp", "lora")])
def test_two_processes_equal_one(two: Team, data: Path, tmp_path: Path, strategy: str, how: str) -> None:
    """Validation included, whose batches the processes have unequally many of; and the published folder."""
    more = [f"model.train={how}", "model.rank=2", "model.alpha=4"]
    alone = train_here(str(data), str(tmp_path / "one"), *more)
    own = [*more, f"strategy={strategy}", "loader.batch_size=2"]
    found = two(train_here, str(data), str(tmp_path / "two"), *own)
    assert found[0]["train/loss_epoch"][0] > found[0]["train/loss_epoch"][1]
    for name, values in alone.items():
        assert found[0][name] == pytest.approx(values, rel=2e-5), name
    one, both = (vlm_files.open_vlm(tmp_path / name / "vlm")[0].state_dict() for name in ("one", "two"))
    for name, value in one.items():
        assert torch.allclose(value, both[name], atol=2e-5), name
    if strategy == "fsdp":
        two(stop_here, str(data), str(tmp_path / "stopped"), *own)
        assert not (tmp_path / "stopped" / "vlm").exists()
        again = two(train_here, str(data), str(tmp_path / "stopped"), *own)
        for name, values in found[0].items():
            assert again[0][name] == pytest.approx(values, rel=1e-12), name
        resumed, _ = vlm_files.open_vlm(tmp_path / "stopped" / "vlm")
        for name, value in resumed.state_dict().items():
            assert torch.equal(value, both[name]), name


def test_the_warm_up_is_logarithmic() -> None:
    factor = train_vlm.log_warmup(10)
    assert factor(0) == 0
    assert factor(4) == pytest.approx(np.log(5) / np.log(10))
    assert factor(9) == pytest.approx(1)
    assert factor(500) == 1
    assert train_vlm.log_warmup(0)(0) == 1


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=60), batch=st.integers(1, 5), size=st.integers(1, 3),
    bucket=st.integers(1, 6), epoch=st.integers(0, 3),
)  # fmt: skip
def test_buckets_share_every_sample(lengths: list[int], batch: int, size: int, bucket: int, epoch: int) -> None:
    parts = []
    for rank in range(size):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("core.dist.world", lambda rank=rank: World(rank, rank, size, torch.device("cpu")))
            order = Bucketed(lengths, batch, 7, bucket)
        parts.append(list(order.batches(epoch)))
        assert len(parts[-1]) == len(order)
        assert list(order.batches(epoch, 1)) == parts[-1][1:]
    together = [sorted(set().union(*groups)) for groups in zip(*parts, strict=True)]
    assert sorted(index for group in together for index in group) == list(range(len(lengths)))
    alone = Bucketed(lengths, batch * size, 7, bucket)
    assert [sorted(group) for group in alone.batches(epoch)] == together


def test_little_of_a_batch_is_padding() -> None:
    """Descriptions as long as the released ones are: 20 to 150 tokens beside 256 of the frame."""
    noise = random.Random(0)
    lengths = [256 + 90 + noise.randint(20, 150) for _ in range(3200)]
    bucketed = waste(lengths, list(Bucketed(lengths, 16, 0, 50).batches(0)))
    plain = waste(lengths, list(Bucketed(lengths, 16, 0, 1).batches(0)))
    assert bucketed < 0.01 < 0.1 < plain


def test_malformed_conversations_are_named(tmp_path: Path) -> None:
    folder = release(tmp_path, 2)
    path = folder / "curation_from_gpt" / "ego4d_for_tuning_forecasting.json"
    cfg = config.load(VlmConfig, overrides=[f"data.root={folder}"])
    records = json.loads(path.read_text())
    path.write_text(json.dumps([records[0], {"id": "x"}]))
    with pytest.raises(ValueError, match="record 1 needs image and conversations"):
        conversations.load(cfg.curation, cfg.data)
    path.write_text("[")
    with pytest.raises(ValueError, match="damaged or no JSON"):
        conversations.load(cfg.curation, cfg.data)
    path.unlink()
    with pytest.raises(ValueError, match="comes with the released dataset, or from curate"):
        conversations.load(cfg.curation, cfg.data)
    tokenizer = AutoTokenizer.from_pretrained(folder / "start")
    bare = conversations.Conversation("ego4d", "a", "x.jpg", ({"from": "human", "value": "how?"},))
    with pytest.raises(ValueError, match="conversation a needs one <image>, it has 0"):
        conversations.Conversations([bare], cfg.data, tokenizer, 28, 100)


def test_whole_clips_are_held_out() -> None:
    every = [conversations.Conversation("ego4d", str(k), f"clip{k // 3}/{k}/a.jpg", ()) for k in range(30)]
    kept, held = conversations.split(every, 0.2)
    assert len(held) == 6
    assert {c.image.split("/")[0] for c in kept}.isdisjoint(c.image.split("/")[0] for c in held)
    assert conversations.split(every, 0.0) == (every, [])
    assert IGNORED == -100
