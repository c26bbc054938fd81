"""Every number somebody may tune; the defaults are those of the original project, repaired where it leaks or drifts."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from core.config import Section
from core.data import LoaderConfig
from core.optim import OptimConfig
from core.run import RunConfig


class DataConfig(Section):
    """Where the clips are, who trains and who tests."""

    dataset: Literal["folder", "ek100"] = Field("folder", description="folder: root/<Class>/<clip>; ek100: rgb_frames")
    root: Path = Field(Path("data/ucf50/UCF50"), description="dataset folder")
    protocol: Literal["grouped", "fold", "random", "files", "lists"] = Field(
        "grouped",
        description="grouped: by source video, 70/15/15; fold: leave one group out; random: the original's, which "
        "leaks; files: csv files in `annotations`; lists: UCF101 split lists in `annotations`",
    )
    annotations: Path | None = Field(None, description="folder of csv files or lists; ek100: folder of the csv files")
    fold: int = Field(1, ge=1, description="test group of protocol fold, number of the UCF101 list")
    seed: int = Field(42, description="seed of the split")
    held_out: float = Field(0.3, ge=0, lt=1, description="share of the clips that does not train")
    test_of_held_out: float = Field(0.5, gt=0, le=1, description="share of the held out clips that tests")
    classes: tuple[str, ...] = Field((), description="use these classes only")
    labels: Literal["verb", "noun", "action"] = Field("verb", description="what an ek100 clip is labeled with")

    @model_validator(mode="after")
    def _classes_are_folders(self) -> "DataConfig":
        if self.classes and self.dataset == "ek100":
            raise ValueError("classes chooses class folders; ek100 has none, leave it out")
        return self


class ClipConfig(Section):
    """Which frames of a clip are taken and what becomes of their pixels."""

    sampling: Literal["whole", "window"] = Field(
        "whole", description="whole: frames spread over the whole clip, short ones padded; window: frames every `rate`"
    )
    frames: int = Field(32, ge=1, description="frames the model sees")
    rate: int = Field(6, ge=1, description="with window: video frames between two of them, at 30 fps")
    crop: int = Field(256, ge=1, description="height and width the model sees; smaller frames get zeros around them")
    test_crop: int | None = Field(None, ge=1, description="what it sees in testing; none: the same")
    short_side: int | None = Field(None, ge=1, description="scale to this short side first; none: keep the stored size")
    mean: tuple[float, float, float] = Field((0.45, 0.45, 0.45), description="subtracted from pixels in [0, 1]")
    std: tuple[float, float, float] = Field((0.225, 0.225, 0.225), description="divides them")
    augment: bool = Field(False, description="in training: random window, scale, crop and flip")
    jitter: tuple[int, int] | None = Field(None, description="with augment: range of the short side, e.g. [182, 228]")
    flip: float = Field(0.5, ge=0, le=1, description="with augment: chance of a mirrored clip")
    mixup: float = Field(0.0, ge=0, description="with augment: alpha of mixup, 0 is off")

    @model_validator(mode="after")
    def _jitter_fits(self) -> "ClipConfig":
        if self.jitter and not self.crop <= self.jitter[0] <= self.jitter[1]:
            raise ValueError(f"jitter {list(self.jitter)} must rise and start at the crop ({self.crop}) or above")
        if self.augment and not self.jitter and self.short_side and self.short_side < self.crop:
            raise ValueError(f"short_side {self.short_side} leaves no room for a random crop of {self.crop}; raise it")
        return self


class ModelConfig(Section):
    """The network and which part of it learns."""

    name: Literal["x3d_xs", "x3d_s", "x3d_m", "x3d_l", "x3d_nano", "slowfast_r50"] = Field(
        "x3d_s", description="variant"
    )
    init: str = Field("", description="weights to start from: a file or an address, any layout that convert reads")
    dropout: float = Field(0.5, ge=0, lt=1, description="before the last linear layer, per position")
    trainable: str = Field("head", description="head, all, or a regular expression of parameter names")
    frozen_norm: Literal["eval", "reference"] = Field(
        "eval", description="reference: batch norms of the frozen backbone keep using and moving batch statistics"
    )


class FeaturesConfig(Section):
    """Train the head on features of the frozen backbone, computed once."""

    cache: Literal["none", "moments", "positions"] = Field(
        "none",
        description="moments: mean and mean square over positions (16 kB a clip); positions: every position in 16 bit",
    )
    folder: Path = Field(Path("runs/ucf50_x3d/features"), description="where the features are kept between runs")


class LossConfig(Section):
    """What is minimized."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")


class EvalConfig(Section):
    """How a model is tested."""

    split: Literal["train", "val", "test"] = Field("test", description="which part, for the eval command")
    views: int = Field(1, ge=1, description="temporal views of a clip; 10 is the published Kinetics protocol")
    crops: Literal[1, 3] = Field(1, description="spatial views: center, or left, center and right")
    positions: Literal["none", "softmax"] = Field(
        "none", description="softmax: average shares over the positions of the head, as SlowFast; none: logits"
    )
    batch_size: int = Field(8, ge=1, description="clips at a time; every view of a clip counts")
    topk: int = Field(5, ge=1, description="classes listed per clip")


class PredictConfig(Section):
    """How a video of any length is answered."""

    input: Path = Field(Path("video.mp4"), description="a video, or a folder of videos")
    hop_s: float = Field(1.0, gt=0, description="seconds between two windows")
    window_s: float = Field(0.0, ge=0, description="seconds a window covers; 0: what the model was trained on, or 4")


class Config(Section):
    """X3D on UCF50."""

    run: RunConfig = RunConfig(out=Path("runs/ucf50_x3d/run"))
    data: DataConfig = DataConfig()
    clip: ClipConfig = ClipConfig()
    loader: LoaderConfig = LoaderConfig(batch_size=2, workers=4)
    model: ModelConfig = ModelConfig()
    features: FeaturesConfig = FeaturesConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig(
        name="sgd", lr=1e-3, momentum=0.9, weight_decay=0.0, epochs=10, schedule="constant"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 where the GPU has it")
    compile: bool = Field(False, description="torch.compile the network")
    eval: EvalConfig = EvalConfig()
    predict: PredictConfig = PredictConfig()
    ckpt: str = Field("", description="weights to evaluate or predict with; empty: the best of run.out")

    @model_validator(mode="after")
    def _views_differ(self) -> "Config":
        if self.eval.views > 1 and self.clip.sampling == "whole":
            raise ValueError("eval.views > 1 needs clip.sampling=window; with whole every view is the same")
        return self

    @model_validator(mode="after")
    def _features_are_constant(self) -> "Config":
        if self.features.cache == "none":
            return self
        if self.model.trainable != "head" or self.model.frozen_norm != "eval":
            raise ValueError("features.cache needs a frozen backbone: model.trainable=head model.frozen_norm=eval")
        if self.clip.augment:
            raise ValueError("features.cache needs clips that never change: clip.augment=false")
        if self.optim.ema:
            raise ValueError("features.cache trains a single layer; averaging it is not supported: optim.ema=0")
        return self
