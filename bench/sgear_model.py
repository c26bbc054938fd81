"""S-GEAR beside its published structure run plainly: a training step on features, the frame encoder, sentence encoding.

python -m bench.sgear_model [--parts features frames sentences] [--batch 64] [--rounds 3] [--threads 1] [--small]

"plain" is the published network as its code runs it: cosines between every step and every prototype elementwise, which
builds (B,T,K,D); prototypes normalized anew at each use; GPT-2 from transformers; both TCA blocks over all tokens; one
sentence at a time. It is written out below, takes the same weights, and has to give the same answers before anything is
timed. On one thread the process's own CPU time is taken, which other work on the machine disturbs least. Peak memory is
that of a process that does nothing else. "products" is the time that the matrix products of a step take alone, all of
them at the rate that the decoder's largest ones reach here: no arrangement of the same arithmetic is faster.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2Model

from core.optim import OptimConfig
from core.step import TrainStep
from projects.sgear.config import DecoderConfig, LossConfig, ModelConfig, PrototypeConfig, VitConfig
from projects.sgear.losses import Criterion
from projects.sgear.model import Sgear

# ---------------------------------------------------------------------------------------------- the published structure


class PlainDecoder(nn.Module):
    """Linear, GPT-2 without words, linear; the names are those of ours."""

    def __init__(self, width: int, inner: int, layers: int, heads: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, inner, bias=False)
        self.decoder = nn.Linear(inner, width, bias=False)
        self.gpt_model = GPT2Model(
            GPT2Config(n_embd=inner, n_layer=layers, n_head=heads, vocab_size=width, use_cache=True)
        )
        del self.gpt_model.wte

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        steps = self.decoder(self.gpt_model(inputs_embeds=self.encoder(features)).last_hidden_state)
        past = torch.cat([features[:, :1], steps[:, :-1]], dim=1)
        return past, steps[:, -1], F.mse_loss(steps[:, :-1], features[:, 1:], reduction="none")


class PlainHead(nn.Module):
    """What follows the features of the steps, feature path, prototypes frozen."""

    def __init__(self, cfg: ModelConfig, frames: int, classes: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.vis_prototypes = nn.Parameter(torch.empty(classes, cfg.width), requires_grad=False)
        self.balancer, self.alpha = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        self.mapper_to_inter = nn.Linear(cfg.feature_dim, cfg.width, bias=False)
        decoder = cfg.decoder
        self.future_predictor = PlainDecoder(cfg.width, decoder.width, decoder.layers, decoder.heads)
        self.classifiers = nn.ModuleDict({"action": nn.Linear(cfg.width, classes)})
        self.dropout, self.cosine = nn.Dropout(cfg.dropout), nn.CosineSimilarity(dim=-1)
        self.ProtAttn = nn.Module()
        self.ProtAttn.tpl_weights = nn.Parameter(torch.empty(cfg.width // 64, frames))
        self.ProtAttn.gate = nn.Parameter(torch.empty(1))
        self.ProtAttn.proj = nn.Linear(cfg.width, cfg.width)

    def attend(self, tokens: Tensor, features: Tensor) -> Tensor:
        batch, steps, width = tokens.shape
        attention = self.ProtAttn
        values, keys = (x.view(batch, steps, -1, 64).transpose(1, 2) for x in (tokens, features))
        rows = []
        for weight in attention.tpl_weights:
            step = torch.arange(steps)
            rows.append(torch.cat([weight, weight[1:].flip(0)])[step - step[:, None]])
        matrix = torch.stack(rows)
        pattern = torch.cat([matrix[:3].cos(), matrix[3:6].sin(), matrix[6:9].cos(), matrix[9:].sin()])
        gate = attention.gate.sigmoid()
        weights = gate * (values * 64**-0.5 @ keys.mT).softmax(-1) + (1 - gate) * pattern
        return attention.proj((weights @ values).reshape(batch, steps, width))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        prototypes, scale = self.vis_prototypes, self.cfg.feature_dim**0.5
        x = self.mapper_to_inter(features)
        x = (x - prototypes.mean()) / prototypes.std()
        similarities_past = self.cosine(x[:, :, None], prototypes)
        near = self.cosine(x.mean(1, keepdim=True), prototypes[None]).topk(x.shape[1]).indices
        share = self.alpha.sigmoid()
        x = share * x + (1 - share) * self.attend(prototypes[near], x)
        past, z, error = self.future_predictor(x)
        past_cosines = self.cosine(past[:, :, None], prototypes)
        similarities = self.cosine(z[:, None].detach(), prototypes)
        share = self.balancer.sigmoid()
        future = share * z + (1 - share) * ((similarities / scale).softmax(-1) @ prototypes)
        past = share * past + (1 - share) * ((past_cosines / scale).softmax(-1) @ prototypes)
        past_logits = self.classifiers["action"](self.dropout(past))
        logits = self.classifiers["action"](self.dropout(future))
        return logits, z, error, similarities, similarities_past, past_logits


class PlainBlock(nn.Module):
    """A block of the ViT, or of the TCA."""

    def __init__(self, width: int, frames: int = 0) -> None:
        super().__init__()
        eps = 1e-5 if frames else 1e-6
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn, self.mlp, self.frames = nn.Module(), nn.Module(), frames
        self.attn.qkv = nn.Linear(width, 3 * width, bias=not frames)
        self.attn.proj = nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        if frames:
            self.attn.tmp_weighting = nn.Parameter(torch.empty(frames))
            self.attn.alpha = nn.Parameter(torch.empty(1), requires_grad=False)

    def spatial(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.attn.qkv(x).reshape(batch, tokens, 3, width // 64, 64).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)

    def temporal(self, x: Tensor) -> Tensor:
        total, tokens, width = x.shape
        frames, heads = self.frames, width // 64
        shape = (total // frames, frames, tokens, 3, heads, 64)
        q, k, v = self.attn.qkv(x).reshape(shape).permute(3, 0, 1, 4, 2, 5).unbind(0)
        weight = self.attn.tmp_weighting[:, None, None, None]
        k, v = (y + (y.detach() * weight).cumsum(1) - y.detach() for y in (k, v))
        scores = (q * 64**-0.5 @ k.transpose(-2, -1)).tril()
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(total, tokens, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.temporal(self.norm1(x)) if self.frames else self.spatial(self.norm1(x))
        x = x + self.attn.proj(mixed)
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class PlainEncoder(nn.Module):
    """ViT, TCA, class tokens with and without context."""

    def __init__(self, cfg: ModelConfig, frames: int) -> None:
        super().__init__()
        vit = cfg.vit
        self.backbone, model = nn.Module(), nn.Module()
        model.cls_token = nn.Parameter(torch.empty(1, 1, vit.width))
        model.pos_embed = nn.Parameter(torch.empty(1, 1 + (vit.image // vit.patch) ** 2, vit.width))
        model.patch_embed = nn.Module()
        model.patch_embed.proj = nn.Conv2d(3, vit.width, vit.patch, vit.patch)
        model.blocks = nn.ModuleList(PlainBlock(vit.width) for _ in range(vit.layers))
        model.norm = nn.LayerNorm(vit.width, eps=1e-6)
        self.backbone.model = model
        self.TCA = nn.ModuleList(PlainBlock(vit.width, frames) for _ in range(cfg.tca_blocks))

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        batch, _, frames = video.shape[:3]
        model = self.backbone.model
        x = model.patch_embed.proj(video.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
        for block in model.blocks:
            x = block(x)
        x = model.norm(x)
        seen = x[:, 0]
        for block in self.TCA:
            x = block(x)
        return x[:, 0].view(batch, frames, -1), seen.view(batch, frames, -1)


# --------------------------------------------------------------------------------------------------------------- timing


def cpu_clock(threads: int) -> Callable[[], float]:
    return time.process_time if threads == 1 else time.perf_counter


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def features_config(small: bool) -> tuple[ModelConfig, int]:
    size = DecoderConfig(width=256, layers=2) if small else DecoderConfig()
    classes = 500 if small else 3806
    prototypes = PrototypeConfig(freeze=True)
    return ModelConfig(input="features", tca_blocks=0, decoder=size, prototypes=prototypes, dropout=0.2), classes


FRAMES = 15
LOSS = LossConfig(semantic=0, past_cls_action=0)  # the released weights on features


def features_networks(small: bool) -> tuple[PlainHead, Sgear]:
    cfg, classes = features_config(small)
    torch.manual_seed(0)
    ours = Sgear(cfg, FRAMES, {"action": classes})
    plain = PlainHead(cfg, FRAMES, classes)
    plain.load_state_dict(ours.state_dict())
    return plain, ours


def features_step(which: str, batch: int, rounds: int, small: bool) -> None:
    """In a process of its own: seconds per sample of a training step, and the peak of memory."""
    cfg, classes = features_config(small)
    torch.manual_seed(0)
    name, _, precision = which.partition(" ")
    net: nn.Module = Sgear(cfg, FRAMES, {"action": classes}) if name == "ours" else PlainHead(cfg, FRAMES, classes)
    for parameter in net.parameters():
        if name != "ours":
            nn.init.normal_(parameter, std=0.02)
    net.train()
    features, label = torch.randn(batch, FRAMES, cfg.feature_dim).abs(), torch.arange(batch) % classes
    optim = OptimConfig(name="sgd", lr=1e-4, weight_decay=1e-5, schedule="constant")
    step = TrainStep(net, optim, batches_per_epoch=10, precision="bf16" if precision == "bf16" else "fp32")
    criterion = Criterion(LOSS, net) if isinstance(net, Sgear) else None
    if criterion is not None:
        net.teach_past = criterion.looks_back

    def run() -> None:
        with step.forward() as forward:
            outputs = forward(features)
            if criterion is not None:
                loss = criterion(outputs, {"label": label})["total"]
            else:
                logits, z, error, *_ = outputs
                distance = (F.normalize(z) - F.normalize(net.vis_prototypes[label])).square().sum(-1)
                loss = F.cross_entropy(logits, label) + error.mean() + distance.mean()
        step.backward(loss)

    run()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    peak = peak_gb()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    print(f"{statistics.median(times) / batch} {peak} {operations(run) / batch / product_rate(batch * FRAMES, dtype)}")


def operations(run: Callable[[], None]) -> float:
    """Floating-point operations in the matrix products of a step."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def product_rate(rows: int, dtype: torch.dtype) -> float:
    """Operations a second in the decoder's largest layer and its two gradients, the best of three."""
    x, grad = torch.randn(rows, 2048, dtype=dtype), torch.randn(rows, 8192, dtype=dtype)
    weight = torch.randn(8192, 2048, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.process_time()
        F.linear(x, weight), grad @ weight, grad.mT @ x
        best = min(best, time.process_time() - start)
    return 3 * 2 * rows * 2048 * 8192 / best


def check_features(small: bool) -> None:
    plain, ours = features_networks(small)
    plain.eval()
    ours.eval()
    features = torch.randn(2, FRAMES, ours.cfg.feature_dim).abs()
    with torch.no_grad():
        logits, z, error, similarities, similarities_past, past_logits = plain(features)
        outputs = ours(features)
    pairs = [(logits, outputs.logits["action"]), (z, outputs.z), (error, outputs.feature_error)]
    pairs += [(similarities, outputs.similarities), (similarities_past, outputs.similarities_past)]
    pairs += [(past_logits, outputs.past_logits["action"])]
    for expected, found in pairs:
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def bench_features(args: argparse.Namespace) -> None:
    check_features(args.small)
    print("training step on features (T=15, K=3806, decoder 6 x 2048), by sample; answers equal")
    reference = None
    for which, batch in (("plain", 2), ("plain", 4), ("ours", 4), ("ours", args.batch), ("ours bf16", args.batch)):
        command = [sys.executable, "-m", "bench.sgear_model", "--step", which, "--batch", str(batch)]
        command += ["--rounds", str(args.rounds), "--threads", str(args.threads)] + (["--small"] if args.small else [])
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        seconds, peak, products = map(float, answer[-3:])
        reference = seconds if (which, batch) == ("plain", 4) else reference
        ratio = f"{reference / seconds:5.2f}x" if reference else "      "
        note = f"[{1e3 * seconds:8.1f} ms a sample, products {1e3 * products:8.1f}]  peak {peak:.2f} GB"
        print(f"    {which:<10} batch {batch:<3} {ratio}  {note}", flush=True)


def bench_frames(args: argparse.Namespace) -> None:
    frames = 4 if args.small else 10
    vit = VitConfig(image=64, layers=2) if args.small else VitConfig(image=224)
    small = DecoderConfig(width=64, layers=1)
    cfg = ModelConfig(vit=vit, decoder=small)
    torch.manual_seed(0)
    ours = Sgear(cfg, frames, {"action": 100})
    plain = PlainEncoder(cfg, frames)
    plain.load_state_dict({name: ours.state_dict()[name] for name in plain.state_dict()})
    video = torch.randn(1, 3, frames, vit.image, vit.image)
    clock = cpu_clock(args.threads)

    def backward(encode: Callable[[Tensor], tuple[Tensor, Tensor]], net: nn.Module) -> Callable[[], Any]:
        def run() -> None:
            for parameter in net.parameters():
                parameter.grad = None
            observed, seen = encode(video)
            (observed.square().mean() + seen.square().mean()).backward()

        return run

    @torch.no_grad()
    def forward(encode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        encode(video)

    with torch.no_grad():
        for expected, found in zip(plain(video), ours.encode(video), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    print(f"frame encoder (ViT-B/16 {vit.image} px, two TCA blocks), {frames} frames; answers equal")
    half = bf16(ours.encode)
    races = {
        "forward": {
            "plain": lambda: forward(plain), "ours": lambda: forward(ours.encode), "ours bf16": lambda: forward(half),
        },
        "forward and backward": {
            "plain": backward(plain, plain), "ours": backward(ours.encode, ours), "ours bf16": backward(half, ours),
        },
    }  # fmt: skip
    for title, runners in races.items():
        times: dict[str, list[float]] = {name: [] for name in runners}
        for number in range(args.rounds + 1):
            for name, run in runners.items():
                start = clock()
                run()
                if number:
                    times[name].append(clock() - start)
        base = statistics.median(times["plain"])
        print(f"  {title}")
        for name, seconds in times.items():
            ratio = base / statistics.median(seconds)
            print(f"    {name:<10} {ratio:5.2f}x   [{1e3 * min(seconds):9.1f} ms]", flush=True)


def bf16(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def run(x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return function(x)

    return run


def bench_sentences(args: argparse.Namespace) -> None:
    """An encoder of MiniLM's size with random weights; its speed is that of the trained one."""
    import tempfile
    from pathlib import Path

    from transformers import BertConfig, BertModel, BertTokenizerFast

    from projects.sgear import encoders

    count = 100 if args.small else 3806
    nouns = ["tap", "cup", "pan", "board", "knife", "machine", "onion", "lid", "cloth", "bin"]
    texts = [f"take the {nouns[k % 10]} {nouns[k // 10 % 10]} {k}" for k in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "take", "the", *nouns, *map(str, range(10))]
        words += [f"##{k}" for k in range(10)]
        (Path(folder) / "vocab.txt").write_text("\n".join(words))
        BertTokenizerFast(str(Path(folder) / "vocab.txt")).save_pretrained(folder)
        size = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        BertModel(BertConfig(vocab_size=30522, **size)).save_pretrained(folder)
        clock = cpu_clock(args.threads)
        encoders.encode(texts[:4], folder)
        some = texts[:100]
        start = clock()
        together = encoders.encode(texts, folder)
        ours = (clock() - start) / count
        tokenizer, model = encoders._load(Path(folder))
        alone = []
        start = clock()
        with torch.inference_mode():
            for text in some:
                batch = tokenizer([text], return_tensors="pt")
                alone.append(encoders._mean(model(**batch).last_hidden_state, batch["attention_mask"]))
        plain = (clock() - start) / len(some)
    torch.testing.assert_close(torch.cat(alone), together[: len(some)], atol=1e-5, rtol=1e-4)
    print(f"sentence encoder of MiniLM's size (6 x 384), {count} actions; answers equal")
    print(f"    one by one   1.00x   [{1e3 * plain:7.2f} ms a sentence, {plain * count:6.1f} s for all]")
    print(f"    batched     {plain / ours:5.2f}x   [{1e3 * ours:7.2f} ms a sentence, {ours * count:6.1f} s for all]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["features", "frames", "sentences"])
    parser.add_argument("--batch", type=int, default=64, help="samples of our training step on features")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="sizes for a look, not for a figure")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.step:
        features_step(args.step, args.batch, args.rounds, args.small)
        return
    parts = {"features": bench_features, "frames": bench_frames, "sentences": bench_sentences}
    for part in args.parts:
        parts[part](args)


if __name__ == "__main__":
    main()
