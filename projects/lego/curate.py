"""Instruction data from labels: a chat model describes, with examples to follow, how labelled actions are carried out.

    python -m projects.lego.curate projects/lego/configs/ego4d_vlm.yaml curate.model=FOLDER curate.count=20000

In-context learning as in the paper: the chat model gets a few written examples, the action and the boxes of its
objects, and no picture. It runs on this machine; any chat model of transformers will do. A part of the training
actions, the same at every call, is described; what was described is kept, and a restart goes on. Answers that are
refusals, echoes, too short or too long are asked for again; actions without a good one are listed. The file is what
train_vlm reads.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import simplejson
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import config, run
from core.checkpoint import write_atomic
from core.data.order import randomness
from core.run import Run
from projects.lego import data, prompts
from projects.lego.config import CurateConfig, VlmConfig
from projects.lego.data import Record
from projects.lego.descriptions import Lines, fingerprint, key

TASK = (
    "You describe how a person seen from their own eyes carries out an action. You get the action and the boxes of "
    "objects in view as [left, top, right, bottom], each from 0 to 1. Answer with one or two sentences on hands, "
    "objects and movements as they are about to happen, and with nothing else. Do not mention boxes or numbers."
)
REFUSALS = re.compile(r"\b(as an ai|i'?m sorry|i cannot|i can'?t|language model|unable to)\b", re.IGNORECASE)


def main(argv: Sequence[str] | None = None) -> Path | None:
    """Write the conversations; returns the file, None when stopped before its end."""
    cfg = config.parse(VlmConfig, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        return curate(cfg, job)


def curate(cfg: VlmConfig, job: Run) -> Path | None:
    """Describe `curate.count` training actions of one dataset.

    Raises:
        ValueError: when the chat model is not there, or what was described before came from another.
    """
    if len(cfg.data.datasets) > 1:
        raise ValueError("curate one dataset at a time: data.datasets=[ego4d]")
    dataset = cfg.data.datasets[0]
    out = cfg.curation.file or cfg.data.root / "curation_from_gpt" / f"{dataset}_for_tuning_forecasting.json"
    if out.is_file():
        raise ValueError(f"{out} is there already; move it away, or name another file with curation.file=FILE")
    chosen = choose(data.load(cfg.data, "train"), cfg.curate)
    chat = Chat(cfg.curate, job.device)
    origin = {"model": fingerprint(Path(cfg.curate.model)), "examples": chat.mark, "seed": cfg.curate.seed}
    lines = Lines(out.with_suffix(".lines.jsonl"))
    before = lines.read()
    if before and before[0] != origin:
        raise ValueError(f"{lines.path} was made with another model, examples or seed; remove it to start anew")
    if not before:
        lines.add(origin)
    known = {entry["key"]: entry["description"] for entry in before[1:]}
    for record in job.log.progress([r for r in chosen if key(r) not in known], "actions"):
        if job.stop_requested:
            job.log.info("stopped; the same command goes on")
            return None
        description = chat.describe(record)
        known[key(record)] = description
        lines.add({"key": key(record), "description": description})
    failed = [key(record) for record in chosen if known[key(record)] is None]
    if failed:
        job.log.warning(f"{len(failed)} actions have no good description and are left out: {', '.join(failed[:10])}")
    write_atomic(
        out, json.dumps([conversation(r, known[key(r)], cfg) for r in chosen if known[key(r)]], indent=1) + "\n"
    )
    job.log.info(f"{out}: {len(chosen) - len(failed)} conversations")
    return out


def choose(records: Sequence[Record], cfg: CurateConfig) -> list[Record]:
    """Which actions are described: all, or a part drawn by the seed, in the order of the dataset."""
    if cfg.count >= len(records):
        return list(records)
    return [records[i] for i in sorted(random.Random(cfg.seed).sample(range(len(records)), cfg.count))]


def conversation(record: Record, description: str, cfg: VlmConfig) -> dict[str, Any]:
    """A record of the file that train_vlm reads."""
    asked = prompts.question(record.prompt("action"), record.dataset, cfg.curation.narrator)
    turns = [{"from": "human", "value": f"{prompts.TAG}\n{asked}"}, {"from": "gpt", "value": description}]
    return {"id": key(record), "image": record.source, "conversations": turns}


class Chat:
    """A chat model that follows examples."""

    def __init__(self, cfg: CurateConfig, device: torch.device) -> None:
        if not Path(cfg.model).is_dir() or not cfg.model:
            raise ValueError(f"curate.model={cfg.model or '(empty)'}: name the folder of a chat model of transformers")
        self.cfg, self.device = cfg, device
        self.tokenizer = AutoTokenizer.from_pretrained(cfg.model, local_files_only=True)
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{cfg.model}: its tokenizer has no chat template; take an instruction-tuned model")
        self.model = AutoModelForCausalLM.from_pretrained(cfg.model, local_files_only=True).to(device).eval()
        text = cfg.examples.read_text() if cfg.examples else (files("projects.lego") / "words" / EXAMPLES).read_text()
        self.examples: list[dict[str, Any]] = json.loads(text)
        self.mark = hashlib.sha256(text.encode()).hexdigest()[:12]

    def describe(self, record: Record) -> str | None:
        """A description that `good` accepts, None when every attempt fails."""
        action = prompts.cleaned(record.prompt("action"), record.dataset)
        messages = self.messages(action, record.fields.get(self.cfg.objects) or {})
        for attempt in range(self.cfg.attempts if self.cfg.temperature else 1):
            answer = self.answer(messages, randomness(self.cfg.seed, attempt, key(record)).getrandbits(31))
            if good(answer, action, self.cfg.words):
                return answer
        return None

    def messages(self, action: str, objects: Mapping[str, Any]) -> list[dict[str, str]]:
        """The task, the examples as a conversation, and the question."""
        said = [{"role": "system", "content": TASK}]
        for example in self.examples:
            said.append({"role": "user", "content": question(example["action"], example.get("objects", {}))})
            said.append({"role": "assistant", "content": example["description"]})
        return [*said, {"role": "user", "content": question(action, objects)}]

    @torch.inference_mode()
    def answer(self, messages: list[dict[str, str]], seed: int) -> str:
        """What the model says, by this seed."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        given = self.tokenizer(text, return_tensors="pt", add_special_tokens=False).to(self.device)
        sampling = (
            {"do_sample": True, "temperature": self.cfg.temperature} if self.cfg.temperature else {"do_sample": False}
        )
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            ids = self.model.generate(
                **given, max_new_tokens=self.cfg.longest, pad_token_id=self.tokenizer.eos_token_id, **sampling
            )
        words = self.tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        return " ".join(str(words).split())


EXAMPLES = "curation_examples.json"


def question(action: str, objects: Mapping[str, Any]) -> str:
    """What the chat model is asked about one action."""
    boxes = "; ".join(f"{name} {simplejson.dumps(box)}" for name, box in objects.items())
    return f"Action: {action}\nObjects: {boxes or 'unknown'}"


def good(answer: str, action: str, words: tuple[int, int]) -> bool:
    """Whether an answer is a description: of fitting length, no refusal, and more than the action said again."""
    count = len(answer.split())
    echo = answer.strip(" .").lower() == action.strip(" .").lower()
    return words[0] <= count <= words[1] and not echo and not REFUSALS.search(answer)


if __name__ == "__main__":
    main()
