"""LEGO's language stage: LLaVA learns to describe, from the frame before it, how an action will be carried out.

Visual instruction tuning (Liu et al., 2023): CLIP stays as it is; the projector and the language model learn the
answers of curated conversations, and nothing of the questions.

python -m projects.lego.train_vlm projects/lego/configs/ego4d_vlm.yaml model.init=llava-llama-2-13b-chat
torchrun --standalone --nproc-per-node 8 -m projects.lego.train_vlm projects/lego/configs/ego4d_vlm.yaml model.init=...
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from core import config, dist, run
from core.checkpoint import Checkpoints
from core.checkpoint.checkpoints import Part
from core.data import Loader
from core.log import Meter, Throughput
from core.run import Run
from core.step import TrainStep, autocast
from projects.lego import conversations
from projects.lego.config import VlmConfig, VlmModelConfig
from projects.lego.conversations import Bucketed, Collate, Conversations
from projects.lego.losses import token_cross_entropy, token_share
from projects.lego.model.vlm import Vlm
from projects.lego.model.vlm_files import open_tokenizer, open_vlm, save_vlm
from projects.lego.prompts import IGNORED

WARMUP = 0.03  # of the steps
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}  # dense bf16
LORA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, and save a folder that extract and transformers read; returns the figures of the last validation."""
    cfg = config.parse(VlmConfig, argv)
    with run.start(cfg, cfg.run) as job:
        return train(cfg, job)


def train(cfg: VlmConfig, job: Run) -> dict[str, float]:
    """The method: cross-entropy of the answers' tokens, given the frame and the question."""
    if not cfg.model.init:
        raise ValueError("model.init is empty: name the folder of LLaVA that learns (docs/data.md)")
    sharded = cfg.strategy == "fsdp" and job.world.size > 1  # then one process reads the weights, and sends the shards
    empty = sharded and not dist.is_main()
    net, report = open_vlm(cfg.model.init, vision=cfg.model.vision, dtype=torch.float32, empty=empty)
    tokenizer = open_tokenizer(cfg.model.init)
    job.log.info(str(report))
    freeze(net if sharded else net.to(job.device), cfg.model)
    said, held = conversations.split(conversations.load(cfg.curation, cfg.data), cfg.curation.held_out)
    loader = batches(said, net, tokenizer, cfg, job)
    val_loader = batches(held, net, tokenizer, cfg, job, train=False)
    if loader is None:
        raise ValueError("there is nothing to train on: no conversations, or all of them are held out")

    total = cfg.optim.epochs * math.ceil(len(loader) / cfg.optim.accumulate)
    step = TrainStep(
        net,
        cfg.optim,
        batches_per_epoch=len(loader),
        precision=cfg.precision,
        strategy=cfg.strategy,
        blocks=(type(net.language.model.layers[0]),) if cfg.strategy == "fsdp" else (),
        factor=log_warmup(round(WARMUP * total)) if cfg.warmup == "log" else None,
    )
    saved = Checkpoints(job.out, best="val/loss", mode="min", keep=cfg.run.keep, about={"vlm": net.config})
    epoch_loss, speed, flops = Meter(), Throughput(), Flops(net, job.device)
    state: dict[str, Part] = {"model": net, "step": step, "loader": loader, "epoch_loss": epoch_loss}
    saved.restore(state)
    job.log.rewind(step.count)
    metrics: dict[str, float] = {}

    for epoch in loader.epochs(until=cfg.optim.epochs):
        net.train()
        speed.reset()
        for batch in loader:
            share = token_share(batch["labels"], IGNORED) if cfg.tokens == "all" else None
            with step.forward() as forward:
                learned = forward(batch["ids"], batch["labels"], batch["mask"], batch["pixels"])
            loss = token_cross_entropy(learned, share=share)
            norm = step.backward(loss)
            epoch_loss.add(loss)
            speed.add(len(batch["id"]), loader.wait_s)
            flops.add(batch["mask"], batch["labels"])
            if norm is None:
                continue

            if step.count % cfg.run.log_every == 0:
                row: dict[str, float | Tensor] = {"train/loss": loss, "lr": step.lr, "grad_norm": norm}
                job.log.scalars(step.count, row | speed.read() | flops.read())
            stopping = job.stopping(step.count)
            if stopping or (cfg.run.save_every and step.count % cfg.run.save_every == 0):
                saved.save(step.count, state)
            if stopping:
                return {}

        saved.save(step.count, state)
        metrics = {"train/loss_epoch": epoch_loss.mean}
        if val_loader is not None:
            metrics |= {"val/loss": validate(step.eval_model, val_loader, cfg, job)}
        metrics = dist.mean(metrics)
        job.log.scalars(step.count, metrics, tensorboard_step=epoch)
        epoch_loss.reset()
        loader.end_epoch()
        saved.save(step.count, state, metrics if val_loader is not None else None)

    folder = publish(net, tokenizer, cfg, job)
    job.log.info(f"trained for {cfg.optim.epochs} epochs; {folder} is a folder for extract and for transformers")
    return metrics


def freeze(net: Vlm, cfg: VlmModelConfig) -> None:
    """CLIP never learns; the language model does as a whole, by low-rank pairs, or not at all."""
    net.requires_grad_(False)
    net.projector.requires_grad_(True)
    if cfg.train == "all":
        net.language.requires_grad_(True)
    elif cfg.train == "lora":
        lora = LoraConfig(r=cfg.rank, lora_alpha=cfg.alpha, target_modules=LORA_LAYERS, lora_dropout=0.0)
        inject_adapter_in_model(lora, net.language)
        net.projector.requires_grad_(True)
    if cfg.checkpointing:
        net.language.gradient_checkpointing_enable({"use_reentrant": False})


def batches(
    part: Sequence[conversations.Conversation],
    net: Vlm,
    tokenizer: PreTrainedTokenizerBase,
    cfg: VlmConfig,
    job: Run,
    *,
    train: bool = True,
) -> Loader | None:
    """Batches of conversations, in training of like lengths; None for no conversations."""
    if not part:
        return None
    dataset = Conversations(part, cfg.data, tokenizer, net.vision.side, cfg.curation.longest)
    collate = Collate(tokenizer.pad_token_id or 0, cfg.curation.longest)
    if not train:
        return Loader(dataset, cfg.loader, train=False, device=job.device, collate=collate)
    lengths = [len(found.ids) - 1 + net.vision.patches for found in dataset.encoded]
    order = Bucketed(lengths, cfg.loader.batch_size, cfg.loader.seed, cfg.bucket)
    padding = conversations.waste(lengths, list(order.batches(0)))
    job.log.info(f"{len(part)} conversations of {min(lengths)} to {max(lengths)} tokens, {padding:.1%} padding")
    return Loader(dataset, cfg.loader, train=True, device=job.device, collate=collate, sampler=order)


def log_warmup(steps: int) -> Callable[[int], float]:
    """DeepSpeed's WarmupLR: log-shaped, then 1. It took the place of the cosine that the published script asked for."""
    return lambda step: min(1.0, math.log(step + 1) / math.log(steps)) if steps > 1 else 1.0


@torch.inference_mode()
def validate(net: torch.nn.Module, loader: Loader, cfg: VlmConfig, job: Run) -> float:
    """The mean loss of the held out conversations."""
    net.eval()
    losses, count = 0.0, 0
    with dist.gathered(net):  # processes may have unequal numbers of batches
        for batch in loader:
            with autocast(cfg.precision, job.device):
                learned = net(batch["ids"], batch["labels"], batch["mask"], batch["pixels"])
            losses += float(token_cross_entropy(learned)) * len(learned.targets)
            count += len(learned.targets)
    sums = dist.mean({"loss": losses, "count": float(count)})
    return sums["loss"] / max(sums["count"], 1e-9)


class Flops:
    """How much of the device's arithmetic goes into the language model: model FLOP utilization (MFU).

    A token takes 4 operations for every weight and 2 more where it learns; weights of the vocabulary are met by the
    tokens that are learned alone, and what is computed again in the backward pass does not count.
    """

    def __init__(self, net: Vlm, device: torch.device) -> None:
        head = net.language.lm_head.weight
        self.per_learned = _operations([head])
        self.per_token = _operations(net.language.model.layers.parameters())
        self.image = net.vision.patches - 1
        self.peak = peak_flops(device)
        self.began = time.perf_counter()
        self.operations: float | Tensor = 0.0

    def add(self, mask: Tensor, labels: Tensor) -> None:
        """Count a batch, without a word from the device."""
        self.operations = self.operations + mask.shape[0] * (mask.shape[1] + self.image) * self.per_token
        self.operations = self.operations + (labels != IGNORED).sum().double() * self.per_learned

    def read(self) -> dict[str, float]:
        """TFLOP/s since the last call, and the share of the peak."""
        now = time.perf_counter()
        rate = float(self.operations) / (now - self.began)
        self.operations, self.began = 0.0, now
        return {"tflops": rate / 1e12, "mfu": rate / self.peak}


def _operations(weights: Iterable[Tensor]) -> int:
    return sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)


def peak_flops(device: torch.device) -> float:
    """Operations a second: of the maker for GPUs we know, else what a product of two matrices reaches now."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else ""
    if known := next((peak for model, peak in PEAK_FLOPS.items() if model in name), 0.0):
        return known
    size = 8192 if cuda else 1024
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        total = (matrix @ matrix)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
        assert total > 0
    return 2 * size**3 / best


def publish(net: Vlm, tokenizer: PreTrainedTokenizerBase, cfg: VlmConfig, job: Run) -> str:
    """Write run.out/vlm, low-rank pairs merged, in the names of transformers."""
    state = dist.full_state(net, main_only=True).get("model", {})
    folder = job.out / "vlm"
    if dist.is_main():
        with init_empty_weights(include_buffers=False):
            whole = Vlm(**net.config)
        for name, layer in net.named_modules():
            if isinstance(layer, LoraLayer):  # under FSDP the layer has a part of its weights, the state all
                rise, fall = (state[f"{name}.lora_{side}.default.weight"] for side in "BA")
                state[f"{name}.weight"] = state[f"{name}.base_layer.weight"] + rise @ fall * layer.scaling["default"]
        whole.load_state_dict({name: state[name] for name in whole.state_dict()}, assign=True)
        save_vlm(whole, tokenizer, folder)
    dist.barrier()
    return str(folder)


if __name__ == "__main__":
    main()
