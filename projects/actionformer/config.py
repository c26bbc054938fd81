"""Every number somebody may tune; the defaults are those that the official code uses where a file is silent."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from core.config import Section
from core.data import LoaderConfig
from core.optim import OptimConfig
from core.run import RunConfig


class DataConfig(Section):
    """Annotations, features and how the two are laid on one grid of time."""

    dataset: str = Field(
        "epic", description="reader: thumos, anet, epic, ego4d; own: your data; any other name with custom_class"
    )
    annotations: Path = Field(Path("data/annotations.json"), description="ActivityNet style JSON")
    features: tuple[Path, ...] = Field(
        (Path("data/features"),), min_length=1, description="folders, or HDF5 files; several are concatenated"
    )
    prefix: str = Field("", description="what a feature file has before the video's id")
    suffix: str = Field(".npy", description="what it has after it: .npy, .npz, .pt")
    train_splits: tuple[str, ...] = Field(("training",), description="subsets that train")
    eval_splits: tuple[str, ...] = Field(("validation",), description="subsets that are evaluated")
    input_dim: tuple[int, ...] = Field((2304,), description="channels of each feature folder, or of all together")
    classes: int = Field(97, ge=1, description="number of classes; 1 on ActivityNet: proposals without a class")
    stride_frames: float | None = Field(
        16, description="video frames between two features; 0 or less: fixed length inputs; none: as extract recorded"
    )
    window_frames: float = Field(32, gt=0, description="video frames that one feature saw")
    fps: float | None = Field(None, gt=0, description="frame rate of all videos; none: that of the annotations")
    downsample: int = Field(1, ge=1, description="keep every so many features")
    max_length: int = Field(2304, ge=1, description="features of a training crop; longer videos are cut at random")
    resample: bool = Field(False, description="stretch every video to max_length features (ActivityNet)")
    min_overlap: float = Field(0.5, ge=0, le=1, description="share of an action that a crop must keep")
    crop: tuple[float, float] | None = Field(None, description="share of a video that a training crop keeps")
    whole_actions: bool = Field(False, description="try to find crops that cut no action")
    background: bool = Field(True, description="videos without any action train too")
    custom_class: str = Field("", description="package.module:Class of one's own reader, under a new `dataset` name")
    options: dict[str, Any] = Field({}, description="further keyword arguments of custom_class")

    @model_validator(mode="after")
    def _reader_is_known(self) -> "DataConfig":
        readers = ("thumos", "anet", "epic", "ego4d", "own")
        if self.dataset not in readers and not self.custom_class:
            raise ValueError(
                f"dataset {self.dataset!r} is none of {', '.join(readers)}; for a reader of your own name it in "
                "custom_class, as package.module:Class"
            )
        return self

    @model_validator(mode="after")
    def _shapes_fit(self) -> "DataConfig":
        if self.crop and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop {list(self.crop)} must rise within 0 to 1, such as [0.9, 1.0]")
        if len(self.features) > 1 and len(self.input_dim) not in (1, len(self.features)):
            raise ValueError(
                f"input_dim has {len(self.input_dim)} numbers for {len(self.features)} feature folders; "
                "give one for each folder, or their sum"
            )
        if self.resample and self.downsample > 1:
            raise ValueError("resample fixes the number of features; downsample has to be 1")
        return self


class ModelConfig(Section):
    """The network; its widths, windows and pyramid."""

    name: Literal["actionformer", "snapformer", "tbtformer"] = Field(
        "actionformer", description="segments; points from heat maps; segments from boundary distributions"
    )
    backbone: Literal["conv", "transformer", "modern"] = Field(
        "transformer", description="modern: the fork's convTransformerv2, which rope, swiglu, ... belong to"
    )
    arch: tuple[int, int, int] = Field((2, 2, 5), description="embedding convolutions, stem blocks, halving blocks")
    scale_factor: int = Field(2, ge=2, description="how much shorter each level of the pyramid is")
    width: tuple[int, ...] = Field((512,), description="channels of the backbone, one number for each feature source")
    heads: int = Field(4, ge=1, description="attention heads")
    kv_heads: int | None = Field(None, ge=1, description="modern: heads of keys and values; none: as many as heads")
    hidden: int | None = Field(None, ge=1, description="hidden width of the feed-forward layers; none: 4 x width")
    window: tuple[int, ...] = Field((-1,), description="keys a query sees, for all levels or for each; 1 or less: all")
    embed_kernel: int = Field(3, ge=1, description="kernel of the embedding convolutions")
    embed_norm: bool = Field(True, description="layer norm after the embedding convolutions")
    abs_positions: bool = Field(False, description="add fixed sinusoids of the position")
    rel_positions: bool = Field(False, description="learn a bias for each place in the window")
    rope: bool = Field(False, description="modern: rotate queries and keys of global blocks; a learned bias in windows")
    swiglu: bool = Field(False, description="modern: gated feed-forward layers")
    rms_norm: bool = Field(False, description="modern: RMS norm in place of layer norm in embedding and blocks")
    neck: Literal["identity", "fpn", "cs_fpn"] = Field("identity", description="what joins the levels of the pyramid")
    neck_width: int = Field(512, ge=1, description="channels of the neck")
    neck_norm: bool = Field(True, description="layer norm at the end of the neck")
    start_level: int = Field(0, ge=0, description="finest level that is used")
    head: Literal["plain", "deep"] = Field("plain", description="deep: the fork's heads with skip connections")
    head_width: int = Field(512, ge=1, description="channels of the heads")
    head_kernel: int = Field(3, ge=1, description="kernel of the heads")
    head_layers: int = Field(3, ge=1, description="convolutions of a head, the last one included")
    head_norm: bool = Field(True, description="layer norm in the heads")
    ranges: tuple[tuple[float, float], ...] = Field(
        ((0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 10000)),
        description="for each level the distances, in features, that it regresses",
    )
    reg_max: int = Field(16, ge=1, description="tbtformer: largest distance in strides that a distribution can say")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of projections and feed-forward layers")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth; 0 also removes the scales of the branches")
    input_dropout: float = Field(0.0, ge=0, lt=1, description="dropout of whole input channels")
    prior: float = Field(0.01, gt=0, lt=1, description="probability of a class that an untrained network says")
    empty_classes: tuple[int, ...] = Field((), description="classes without examples: their prior is 1e-6")

    @property
    def levels(self) -> int:
        """Levels of the backbone's pyramid."""
        return self.arch[2] + 1

    @property
    def windows(self) -> tuple[int, ...]:
        """The window of each level."""
        return self.window * self.levels if len(self.window) == 1 else self.window

    @model_validator(mode="after")
    def _pyramid_fits(self) -> "ModelConfig":
        used = self.levels - self.start_level
        if used < 1:
            raise ValueError(f"start_level {self.start_level} leaves no level of {self.levels}; lower it")
        if len(self.ranges) != used:
            raise ValueError(
                f"ranges has {len(self.ranges)} entries, the pyramid {used} levels (arch {list(self.arch)} from "
                f"start_level {self.start_level}); give one (low, high) for each"
            )
        for low, high in self.ranges:
            if not 0 <= low < high:
                raise ValueError(f"range ({low:g}, {high:g}) must rise from 0 or more")
        if len(self.window) not in (1, self.levels):
            raise ValueError(f"window has {len(self.window)} entries; give one, or {self.levels}, one for each level")
        if even := [window for window in self.window if window > 1 and window % 2 == 0]:
            raise ValueError(f"window {even[0]} is even; a window around a feature is odd")
        return self

    @model_validator(mode="after")
    def _widths_fit(self) -> "ModelConfig":
        width = sum(self.width)
        if self.backbone != "conv" and width % self.heads:
            raise ValueError(f"width {width} is not a multiple of {self.heads} heads")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of {self.kv_heads} kv_heads")
        if self.neck == "identity" and width != self.neck_width:
            raise ValueError(f"neck identity keeps the width: neck_width {self.neck_width} should be {width}")
        if even := [k for k in (self.embed_kernel, self.head_kernel) if k % 2 == 0]:
            raise ValueError(f"kernel {even[0]} is even; a kernel over time is odd")
        return self


class LossConfig(Section):
    """What is minimized."""

    classification: Literal["focal", "qfl"] = Field("focal", description="qfl: targets are scaled by the IoU reached")
    regression: Literal["diou", "eiou", "giou", "iou", "focal", "iou_weighted"] = Field(
        "diou", description="loss of the boundaries"
    )
    weight: float = Field(1.0, description="weight of the regression; 0 or less: as large as the classification")
    distribution_weight: float = Field(0.25, ge=0, description="tbtformer: weight of the distribution focal loss")
    center: Literal["radius", "none"] = Field("radius", description="radius: only points near the center learn")
    center_radius: float = Field(1.5, gt=0, description="that radius, in strides")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    init_norm: float = Field(2000.0, gt=0, description="positive points that the normalizer starts from")
    norm_momentum: float = Field(0.9, ge=0, lt=1, description="share of itself that the normalizer keeps every batch")
    norm_shared: bool = Field(
        True, description="count positive points over all processes; false: each its own, as the fork"
    )


class TrainConfig(OptimConfig):
    """How a model is optimized."""

    recipe: Literal["official", "plain"] = Field(
        "official", description="official: warm-up from 0, cosine to 1e-8 by the official recursion; plain: core's"
    )
    scale_lr: bool = Field(True, description="multiply lr by processes x accumulate, as the fork's guide says")
    stop_epoch: int | None = Field(None, ge=1, description="end the run here, on the schedule of all epochs")


class ConstraintsConfig(Section):
    """What is known about the actions of a dataset; detections that contradict it are dropped."""

    min_score: float = Field(0.0, ge=0, description="first drop what scores less")
    min_gap: dict[int, float] = Field({}, description="class: seconds between the centers of two of its detections")
    duration_range: dict[int, tuple[float, float]] = Field({}, description="class: shortest and longest, in seconds")
    max_overlap: float = Field(0.5, ge=0, le=1, description="largest tIoU of two detections of a video, of any class")
    ordering: tuple[tuple[int, ...], ...] = Field(
        (), description="chains of classes: one counts only after the start of one of the class before it in the chain"
    )


class PostprocessConfig(Section):
    """From scored points to detections."""

    score_threshold: float = Field(0.001, ge=0, lt=1, description="points at or below are dropped")
    topk: int = Field(5000, ge=1, description="candidates kept of each level")
    total_topk: int | None = Field(None, ge=1, description="candidates kept of all levels together; none: all of them")
    nms: Literal["soft", "hard", "none"] = Field("soft", description="suppression")
    iou_threshold: float = Field(0.1, ge=0, le=1, description="hard: overlap that suppresses")
    min_score: float = Field(0.01, ge=0, lt=1, description="detections below are dropped")
    max_detections: int = Field(1000, ge=1, description="detections kept of a video")
    sigma: float = Field(0.5, gt=0, description="soft: width of the decay")
    class_sigma: dict[int, float] = Field({}, description="soft, per_class: sigma of single classes")
    diou: bool = Field(False, description="soft: distances of centers count too")
    diou_order: Literal["initial", "decayed"] = Field(
        "initial", description="initial: pick in the order of the scores before any decay, as the fork; decayed: by NMS"
    )
    per_class: bool = Field(True, description="suppress within a class only")
    voting: float = Field(
        0.75, ge=0, le=1, description="not per_class: average the candidates of this overlap; 0: none"
    )
    voting_weight: Literal["score_iou", "score"] = Field("score_iou", description="weight of a candidate in that mean")
    min_duration: float = Field(0.05, description="segments of at most this length are dropped, in features")
    temperature: float = Field(1.0, gt=0, description="divides the logits")
    units: Literal["seconds", "features"] = Field("seconds", description="of the boundaries")
    on_gpu: bool = Field(
        True, description="where the network is on a GPU: suppress there, a batch at once; false: on the CPU beside it"
    )
    external_scores: Path | None = Field(None, description="class scores of whole videos, JSON or pickle")
    external_classes: int = Field(2, ge=1, description="classes of a video that each of its segments is given")
    external_detections: int = Field(200, ge=1, description="segments of a video that are given classes")
    constraints: ConstraintsConfig | None = Field(None, description="rules that detections must keep; none: no rules")


class EvalConfig(Section):
    """How a model is tested."""

    tiou: tuple[float, ...] | None = Field(None, description="overlaps of the mean APs; none: those of the benchmark")
    recall: tuple[int, ...] = Field(
        (1, 5), description="k of recall@kx: the best k detections for each action of a class in a video"
    )
    tolerances_s: tuple[float, ...] = Field(
        (0.1, 0.2, 0.5, 1.0, 2.0), min_length=1, description="points: distances that count as found"
    )
    label_collision: bool = Field(
        True, description="as the official evaluator, count detections of classes without truth for another class"
    )
    batch_size: int = Field(1, ge=1, description="videos at a time; those of similar length come together")
    epoch: int = Field(-1, description="with ckpt=FOLDER of official files: the epoch; -1: the last by name")
    save_only: bool = Field(False, description="write the detections without comparing them with a truth")
    detections: Path | None = Field(
        None, description="evaluate this file of detections, of ours or of the official code, without any network"
    )
    submission: Literal["none", "activitynet", "ego4d"] = Field(
        "none", description="also write submission.json for this challenge (`joint` writes that of EPIC-KITCHENS)"
    )
    analysis: bool = Field(True, description="analyze errors for the report")
    timelines: int = Field(8, ge=0, description="videos in the report with truth and detections")


class PredictConfig(Section):
    """How a video without annotations is answered."""

    input: Path = Field(Path("video.mp4"), description="a video, a feature file, or a folder of them")
    video: Path | None = Field(None, description="with features as input: the video to play beside the answer")
    min_score: float = Field(0.1, ge=0, le=1, description="detections shown in page and subtitles; the JSON has all")
    block: int | None = Field(None, ge=1, description="features at a time, in constant memory; none: the whole video")


class ExtractConfig(Section):
    """How the features of one's own videos are made; they go to the first folder of data.features."""

    videos: Path = Field(Path("data/own/videos"), description="a video, or a folder of videos")
    model: str = Field(
        "i3d", description="i3d, motion (no network), a video model of torchvision, or package.module:function"
    )
    weights: str = Field("", description="file of weights; a torchvision model takes names such as KINETICS400_V1 too")
    fps: float | None = Field(25.0, gt=0, description="frames of a second that the network sees; none: the video's own")
    stride: int = Field(8, ge=1, description="such frames from one feature to the next")
    window: int = Field(16, ge=1, description="such frames that one feature sees")
    short_side: int | None = Field(None, ge=1, description="scale frames to it; none: what the network was trained on")
    crop: int | None = Field(None, ge=1, description="middle part of the frames; none: what the network was trained on")
    batch_size: int = Field(4, ge=1, description="windows at a time")
    dtype: Literal["float32", "float16"] = Field("float32", description="of the files; float16 takes half the disk")
    overwrite: bool = Field(False, description="make features again that are there already")


class Config(Section):
    """ActionFormer: temporal action localization."""

    run: RunConfig = RunConfig(out=Path("runs/actionformer/run"), seed=1234567891)
    data: DataConfig = DataConfig()
    loader: LoaderConfig = LoaderConfig(batch_size=8, workers=4, drop_last=True)
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: TrainConfig = TrainConfig(
        name="adamw", lr=1e-3, epochs=35, warmup=5, schedule="cosine", ema=0.999, ema_warmup=0
    )
    init: str = Field("", description="weights to start from: any file that convert reads")
    resume: str = Field(
        "", description="an official epoch_XXX.pth.tar whose run goes on here; checkpoints of run.out come first"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "fp32", description="auto: bf16 where the GPU has it, about twice as fast there"
    )
    compile: bool = Field(False, description="torch.compile the network")
    postprocess: PostprocessConfig = PostprocessConfig()
    eval: EvalConfig = EvalConfig()
    predict: PredictConfig = PredictConfig()
    extract: ExtractConfig = ExtractConfig()
    ckpt: str = Field("", description="weights to evaluate or predict with; empty: the best of run.out")

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        return self
