"""Curation with a chat model made on the spot: subset, checks, resuming, the file that training reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from core import config
from projects.lego import conversations, curate, data
from projects.lego.config import CurateConfig, VlmConfig
from projects.lego.descriptions import Lines
from tests.support import GOLDEN

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
GOOD = "the person takes the cup with the left hand and lifts it up"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    entries = {}
    for k in range(6):
        frames = {"image_0": f"clip{k}/0/a.jpg", "image_1": f"clip{k}/0/b.jpg"}
        entries[f"clip{k}"] = {
            "0": {**frames, "action": f"#C C lifts cup {k}", "objects": {"cup": [0.1, 0.2, 0.3, 0.4]}}
        }
    (tmp_path / "ego4d_train.json").write_text(json.dumps(entries))
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "lego" / "llava_labels")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(vocab_size=520, **sizes)).save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    return tmp_path


def arguments(root: Path, *more: str) -> list[str]:
    return [
        f"run.out={root / 'run'}", "run.device=cpu", f"data.root={root}", f"curate.model={root / 'chat'}",
        "curate.count=4", *more,
    ]  # fmt: skip


def test_the_model_is_asked_with_examples_and_boxes(root: Path) -> None:
    chat = curate.Chat(CurateConfig(model=str(root / "chat"), longest=8), torch.device("cpu"))
    (record, *_) = data.load(config.load(VlmConfig, overrides=[f"data.root={root}"]).data, "train")
    messages = chat.messages("lift cup 0", record.fields["objects"])
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 4, "user"]
    assert messages[-1]["content"] == "Action: lift cup 0\nObjects: cup [0.1, 0.2, 0.3, 0.4]"
    assert curate.question("cut", {}) == "Action: cut\nObjects: unknown"
    one = chat.answer(messages, 1)
    torch.rand(3)
    assert chat.answer(messages, 1) == one
    assert chat.answer(messages, 2) != one
    assert all(curate.good(e["description"], e["action"], (8, 120)) for e in chat.examples)


def test_the_file_is_what_training_reads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(chat: curate.Chat, messages: list[dict[str, str]], seed: int) -> str:
        asked.append(messages[-1]["content"].splitlines()[0])
        return "I'm sorry, I cannot see the cup that you speak of, as an AI" if asked.count(asked[-1]) == 1 else GOOD

    monkeypatch.setattr(curate.Chat, "answer", answer)
    out = curate.main(arguments(root))
    assert out == root / "curation_from_gpt" / "ego4d_for_tuning_forecasting.json"
    assert len(asked) == 8  # a refusal, then a description, for each of four
    cfg = config.load(VlmConfig, overrides=[f"data.root={root}"])
    found = conversations.load(cfg.curation, cfg.data)
    assert len(found) == 4
    assert found[0].turns[0]["value"].startswith("<image>\nHow does the person properly lift cup ")
    assert found[0].turns[1]["value"] == GOOD
    assert [c.image for c in found] == sorted(c.image for c in found)
    with pytest.raises(ValueError, match="is there already; move it away"):
        curate.main(arguments(root))


def test_it_goes_on_where_it_stopped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def answer(chat: curate.Chat, messages: list[dict[str, str]], seed: int) -> str:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return GOOD

    monkeypatch.setattr(curate.Chat, "answer", answer)
    with pytest.raises(KeyboardInterrupt):
        curate.main(arguments(root))
    with pytest.raises(ValueError, match="made with another model, examples or seed"):
        curate.main(arguments(root, "curate.seed=5"))
    assert curate.main(arguments(root)) is not None
    assert calls == 5  # two before, one lost, two after


def test_actions_without_a_description_are_left_out(root: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(curate.Chat, "answer", lambda chat, messages, seed: "yes" if "cup 3" in str(messages) else GOOD)
    out = curate.main(arguments(root, "curate.count=6"))
    assert len(json.loads(out.read_text())) == 5
    assert "1 actions have no good description and are left out: clip3/0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "fine"),
    [(GOOD, True), ("lift the cup", False), ("I'm sorry but " + GOOD, False), ("word " * 200, False), ("", False)],
)
def test_what_counts_as_a_description(answer: str, fine: bool) -> None:
    assert curate.good(answer, "lift the cup", (8, 120)) == fine


def test_a_model_that_is_no_chat_model_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"curate\.model=\(empty\): name the folder"):
        curate.main(arguments(root, "curate.model="))
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "lego" / "llava_labels")
    (root / "chat" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(root / "chat")
    with pytest.raises(ValueError, match="has no chat template"):
        curate.main(arguments(root))


def test_a_line_cut_short_does_not_count(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "a" / "lines.jsonl")
    assert lines.read() == []
    lines.add({"a": 1})
    lines.add({"b": "ü"})
    lines.path.write_bytes(lines.path.read_bytes()[:-4])
    assert lines.read() == [{"a": 1}]
    lines.add({"c": 3})
    assert lines.read() == [{"a": 1}, {"c": 3}]
