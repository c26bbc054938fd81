"""Questions, conversations and labels."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from projects.lego import lemma, prompts
from tests.support import GOLDEN, Parity, cases

LABELS = GOLDEN / "lego" / "llava_labels"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(LABELS)


@pytest.mark.golden
def test_actions_are_cleaned_as_the_original_does() -> None:
    (case,) = cases("lego", "action_prompt")
    for row in case.json("cases.json"):
        assert prompts.cleaned(row["action"], "ego4d") == row["cleaned"]
        assert prompts.question(row["action"], "ego4d") == row["query"]
    assert prompts.cleaned("opens drawer", "epickitchen") == "opens drawer"


@pytest.mark.golden
def test_conversations_and_labels(parity: Parity, tokenizer) -> None:
    (case,) = cases("lego", "llava_labels")
    expected, texts = case.expected, case.json("prompts.json")
    encoded = []
    for number, record in enumerate(case.json("data.json")):
        text = prompts.prompt(record["conversations"])
        assert text == texts["train"][number]
        found = prompts.encode(text, tokenizer)
        parity.check(f"ids_{number}", found.ids, expected[f"ids_{number}"])
        parity.check(f"labels_{number}", found.labels, expected[f"labels_{number}"])
        encoded.append({"ids": found.ids, "labels": found.labels})
    batch = prompts.collate(encoded, tokenizer.pad_token_id or 0, 2048)
    parity.check("batch_input_ids", batch["ids"], expected["batch_input_ids"])
    parity.check("batch_labels", batch["labels"], expected["batch_labels"])
    parity.check("batch_mask", batch["mask"], expected["batch_mask"])
    asked = prompts.prompt([{"from": "human", "value": f"<image>\n{prompts.question('open the drawer', 'epic')}"}])
    assert asked == texts["inference"]
    parity.check("infer_ids", prompts.encode(asked, tokenizer).ids, expected["infer_ids"])


def test_several_rounds_learn_every_answer_and_nothing_else(tokenizer) -> None:
    turns = [
        {"from": "human", "value": "<image>\nopen"}, {"from": "gpt", "value": "the left hand"},
        {"from": "human", "value": "and then?"}, {"from": "gpt", "value": "the right"},
    ]  # fmt: skip
    found = prompts.encode(prompts.prompt(turns), tokenizer)
    kept = found.ids[found.labels != prompts.IGNORED]
    assert torch.equal(kept, found.labels[found.labels != prompts.IGNORED])
    text = tokenizer.decode(kept)
    assert text.replace(" ", "") == "thelefthand</s>theright</s>"
    assert (found.ids == prompts.IMAGE).sum() == 1
    with pytest.raises(ValueError, match="turn 1 of a conversation should come from gpt"):
        prompts.prompt([turns[0], turns[0]])


@pytest.mark.parametrize(
    ("word", "base"),
    [
        ("picks", "pick"), ("carries", "carry"), ("was", "be"), ("left", "leave"), ("putting", "put"), ("dries", "dry"),
        ("washes", "wash"), ("xyzzies", "xyzzies"), ("", ""), ("sewn", "sew"), ("running", "run"), ("be", "be"),
    ],
)  # fmt: skip
def test_base_forms(word: str, base: str) -> None:
    assert lemma.verb(word) == base


@pytest.mark.parametrize(
    ("action", "text"),
    [
        ("#C C picks up the knife", "pick up the knife"), ("#C picks the tool", "pick the tool"),
        ("#c c lifts the box", "lift the box"), ("#O The man X picks the ball", "pick the ball"),
    ],
)  # fmt: skip
def test_narrators_by_pattern(action: str, text: str) -> None:
    assert prompts.cleaned(action, "ego4d", "pattern") == text


def test_long_conversations_are_cut() -> None:
    sample = {"ids": torch.arange(10), "labels": torch.arange(10), "id": "a"}
    batch = prompts.collate([sample, {**sample, "ids": torch.arange(3), "labels": torch.arange(3)}], 0, 6)
    assert batch["ids"].shape == (2, 6)
    assert batch["labels"][1].tolist() == [0, 1, 2, -100, -100, -100]
    assert json.dumps(batch["id"]) == '["a", "a"]'
