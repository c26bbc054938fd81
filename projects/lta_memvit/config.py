"""Every number somebody may tune; the defaults are those of the Ego4D long-term anticipation baseline, repaired."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from core import optim
from core.config import Section
from core.data import LoaderConfig
from core.run import RunConfig

Task = Literal["recognition", "forecasting"]
Backbone = Literal[
    "slowfast_r101",
    "slowfast_r50",
    "slowfast_nano",
    "mvit_b",
    "mvit_nano",
    "memvit_16",
    "memvit_24",
    "memvit_nano",
    "none",
]


class DataConfig(Section):
    """Where the annotations and clips are, and how many actions are seen and forecast."""

    annotations: Path = Field(
        Path("data/long_term_anticipation/annotations"), description="folder of the fho_lta_*.json files, v1 or v2"
    )
    clips: Path = Field(Path("data/long_term_anticipation/clips"), description="folder of <clip_uid>.mp4")
    inputs: int = Field(2, ge=1, description="observed segments of a window (N)")
    future: int = Field(20, ge=1, description="actions to forecast (Z)")
    windows: Literal["all", "reference"] = Field(
        "all", description="reference: without the last window of every clip, as the original"
    )


class ClipConfig(Section):
    """Which frames of a segment are taken and what becomes of their pixels."""

    frames: int = Field(16, ge=1, description="frames of one input clip")
    rate: int = Field(4, ge=1, description="frames of the video from one to the next, at `fps`")
    fps: float = Field(30.0, gt=0, description="frame rate that `rate` refers to")
    crop: int = Field(224, ge=1, description="height and width the model sees")
    jitter: tuple[int, int] = Field((256, 320), description="range of the short side in training; its start in testing")
    flip: float = Field(
        0.5, ge=0, le=1, description="chance of a mirrored window; 1: as the original, by mistake; 0: hands keep sides"
    )
    val: Literal["center", "random"] = Field(
        "center", description="which part of a segment validation sees; random: as the original"
    )
    mean: tuple[float, float, float] = Field((0.45, 0.45, 0.45), description="subtracted from pixels in [0, 1]")
    std: tuple[float, float, float] = Field((0.225, 0.225, 0.225), description="divides them")

    @property
    def seconds(self) -> float:
        """Length of an input clip."""
        return self.frames * self.rate / self.fps

    @model_validator(mode="after")
    def _jitter_fits(self) -> Self:
        if not self.crop <= self.jitter[0] <= self.jitter[1]:
            raise ValueError(f"jitter {list(self.jitter)} must rise and start at the crop ({self.crop}) or above")
        return self


class FeaturesConfig(Section):
    """Train the heads on features of the frozen backbone, computed once."""

    source: Literal["video", "cache", "ego4d"] = Field(
        "video",
        description="what a window is read from: video; cache: features of the frozen backbone, computed once; ego4d: "
        "precomputed features of the source videos, <folder>/<video_uid>.pt",
    )
    folder: Path = Field(Path("runs/lta_memvit/features"), description="where features are kept between runs")
    views: int = Field(4, ge=1, description="cache: random views of every training clip; 1: its middle, unchanged")
    stride: int = Field(16, ge=1, description="ego4d: frames from one feature to the next")
    span: int = Field(32, ge=1, description="ego4d: frames that one feature saw")
    fps: float = Field(30.0, gt=0, description="ego4d: frame rate of the source videos")


class ModelConfig(Section):
    """The network and which part of it learns."""

    backbone: Backbone = Field("memvit_16", description="network that encodes one segment; none: precomputed features")
    feature_size: int = Field(2304, ge=1, description="with backbone none: channels of the precomputed features")
    aggregator: Literal["concat", "mean", "transformer", "repeat"] = Field(
        "concat",
        description="what joins the features of the inputs; repeat: no forecaster, the recognized action of the first "
        "input at every position",
    )
    width: int = Field(0, ge=0, description="size of a segment's feature; 0: 2048 for SlowFast, 768 for MViT")
    layers: int = Field(6, ge=1, description="layers of the transformer aggregator")
    heads: int = Field(8, ge=1, description="attention heads of the transformer aggregator")
    dropout: float = Field(0.5, ge=0, lt=1, description="before the last linear layers")
    drop_path: float = Field(0.2, ge=0, lt=1, description="MViT: chance that its last block is skipped; 0 at the first")
    softmax_head: bool = Field(
        False, description="MViT recognition: train on probabilities instead of logits, as the original by mistake"
    )
    causal: bool = Field(False, description="MeMViT: no token sees a later one of its own clip")
    widen: Literal["attention", "mlp"] = Field(
        "attention",
        description="MeMViT: where blocks get wider; attention fits the published weights, mlp is the LTA fork",
    )
    init: str = Field("", description="weights to start from: a file or an address, any layout that convert reads")
    init_head: bool = Field(False, description="take the last layers from `init` too")
    freeze: bool = Field(False, description="forecasting: only the backbone's last layer and what follows it learn")
    frozen: Literal["eval", "reference"] = Field(
        "eval", description="reference: a frozen backbone keeps dropping paths and moving its batch statistics"
    )
    precise_bn: int = Field(
        0, ge=0, description="batches over which batch statistics are measured anew after every epoch; 0: never"
    )
    recompute: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")


class MemoryConfig(Section):
    """What MeMViT remembers of a clip's earlier segments."""

    mode: Literal["clip", "reference", "off"] = Field(
        "clip",
        description="clip: one stream for each clip, masked, independent of the batch; reference: the original's cache "
        "of batches; off: none",
    )
    sampler: str = Field(
        "gap2", pattern=r"^(all|gap[1-9])$", description="which cached segments are attended: all, or every n-th"
    )
    length: int = Field(3, ge=2, description="segments attended at most, the present one included")
    key: Literal["clip", "sample"] = Field(
        "clip", description="with reference, what tells videos apart; sample: the LTA fork's wiring"
    )
    order: Literal["runs", "reference"] = Field(
        "runs", description="training order; runs visit every segment; reference may repeat some and miss others"
    )


class LossConfig(Section):
    """What is minimized."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")


class OptimConfig(optim.OptimConfig):
    """How a model is optimized; the schedule may warm up over a number of steps, as all official runs do."""

    warmup_steps: int = Field(
        0, ge=0, description="optimizer steps of warm-up from 0, in place of warmup; may exceed the run"
    )
    decay: Literal["reference", "matrices"] = Field(
        "reference", description="what weight_decay applies to: all but batch norms, or what has two dimensions"
    )

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup and self.warmup_steps:
            raise ValueError("warmup (epochs) and warmup_steps exclude each other; set one of them")
        if self.warmup_steps and self.schedule not in ("constant", "cosine", "linear"):
            raise ValueError(f"warmup_steps goes with constant, cosine or linear, not with schedule={self.schedule}")
        return self


class TrainConfig(Section):
    """How a training is tried out and watched."""

    fast_dev_run: bool = Field(
        False, description="try one batch of training, validation and test, in a folder of its own; keep no weights"
    )
    sanity_batches: int = Field(3, ge=0, description="batches of validation before the first epoch, to see it work")
    histograms: int = Field(
        0, ge=0, description="optimizer steps between two histograms of all weights and gradients; 0: never"
    )


class EvalConfig(Section):
    """How a model is tested."""

    split: Literal["train", "val", "test"] = Field("val", description="which part, for the eval command")
    batch_size: int = Field(8, ge=1, description="samples at a time")
    sequences: int = Field(5, ge=1, description="alternative futures of a window (K); 1: the likeliest classes")
    sampling: Literal["id", "reference"] = Field(
        "id",
        description="id: a window's draws depend on eval.seed and its id alone; reference: torch's draws in the "
        "original's order, which depend on batches",
    )
    seed: int = Field(0, ge=0, description="seed of the draws")
    temperature: float = Field(1.0, gt=0, description="divides logits before drawing; below 1 is surer, above 1 bolder")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest classes that make up this share only")
    average: Literal["samples", "batches"] = Field(
        "samples", description="batches: mean over batches of their means, as the original"
    )
    views: int = Field(1, ge=1, description="recognition: parts of a segment that are looked at; 1 is its middle")
    ensemble: Literal["sum", "max"] = Field("sum", description="recognition: how shares of several views are joined")


class PredictConfig(Section):
    """How a video of any length is answered."""

    input: Path = Field(Path("video.mp4"), description="a video, or a folder of videos")
    segment_s: float = Field(8.0, gt=0, description="seconds of a segment, the length of Ego4D's")
    hop_s: float = Field(2.0, gt=0, description="seconds from one segment to the next")
    at_s: float = Field(-1.0, description="second up to which the video is seen, then it is forecast; below 0: its end")
    recognizer: str = Field("", description="weights of a recognition model, to name what was seen")
    topk: int = Field(3, ge=1, description="classes listed for each action")


class Config(Section):
    """Long-term action anticipation on Ego4D."""

    task: Task = Field("forecasting", description="recognition of one segment, or forecasting of the next actions")
    run: RunConfig = RunConfig(out=Path("runs/lta_memvit/run"))
    data: DataConfig = DataConfig()
    clip: ClipConfig = ClipConfig()
    features: FeaturesConfig = FeaturesConfig()
    loader: LoaderConfig = LoaderConfig(batch_size=8, workers=8)
    model: ModelConfig = ModelConfig()
    memory: MemoryConfig = MemoryConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig(
        name="adam", lr=3e-4, weight_decay=1e-4, epochs=45, schedule="cosine", warmup_steps=1000
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 where the GPU has it")
    compile: bool = Field(False, description="torch.compile the network")
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    predict: PredictConfig = PredictConfig()
    ckpt: str = Field("", description="weights to evaluate or predict with; empty: the best of run.out")

    @model_validator(mode="after")
    def _features_are_constant(self) -> Self:
        if (self.features.source == "ego4d") != (self.model.backbone == "none"):
            raise ValueError("features.source=ego4d and model.backbone=none go together: features need no backbone")
        if self.features.source == "video":
            return self
        if self.task != "forecasting" or self.model.aggregator == "repeat":
            raise ValueError(f"features.source={self.features.source} is for forecasters; take features.source=video")
        if self.features.source == "cache" and not (self.model.freeze and self.model.frozen == "eval"):
            raise ValueError("features.source=cache needs a frozen backbone: model.freeze=true model.frozen=eval")
        return self
