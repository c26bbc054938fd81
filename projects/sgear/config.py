"""Every number somebody may tune; the defaults are those of the paper's frame model on EPIC-KITCHENS-100."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from core.config import Section
from core.data import LoaderConfig
from core.optim import OptimConfig
from core.run import RunConfig

LabelType = Literal["action", "verb", "noun"]


class DataConfig(Section):
    """Where the annotations, videos and features are, and what the model may see before an action."""

    dataset: Literal["ek100", "ek55", "egtea", "salads", "breakfast"] = Field("ek100", description="the benchmark")
    root: Path = Field(
        Path("data/sgear"), description="folder with DATA/ and external/ as the published code lays them out"
    )
    annotations: Path | None = Field(
        None, description="official csv or pickle files (salads: splits); none: where `root` has them"
    )
    rulstm: Path | None = Field(None, description="RULSTM's csv files (salads: folder of mapping.txt, groundTruth)")
    table: Literal["official", "rulstm"] = Field(
        "official", description="which files tell the actions of EPIC-KITCHENS; rulstm: rounded to frames at 30 fps"
    )
    train: Literal["train", "train+val"] = Field("train", description="parts that are trained on")
    persons: tuple[int, int] | None = Field(None, description="train on the participants P<first>..P<last> only")
    fold: int = Field(1, ge=1, description="split of egtea (1-3), salads (1-5), breakfast (1-4)")
    labels: Literal["bundles", "timestamps"] = Field(
        "bundles", description="salads: labels of every frame, or the original activityAnnotations with timestamps"
    )

    source: Literal["video", "frames", "features"] = Field(
        "video", description="frames: JPEG folders or tars as EPIC-KITCHENS publishes them; features: LMDB"
    )
    videos: tuple[Path, ...] = Field((), description="folders searched in order; none: where `root` has them")
    features: tuple[str, ...] = Field(
        ("rgb",), description="LMDB folders, or rgb, flow, obj, igm for those of `root`; several are concatenated"
    )
    fps: float = Field(0.0, ge=0, description="frame rate of JPEG frames and of label files; 0: look it up")
    exact_rulstm: bool = Field(False, description="features of 11 points every 0.25 s, as RULSTM reads them")
    missing: Literal["error", "skip"] = Field(
        "error", description="a video that is nowhere: refuse to start, or leave its samples out and say how many"
    )

    frames: int = Field(15, ge=1, description="frames (or feature vectors) of a clip, T")
    rate: float | None = Field(1.0, gt=0, description="frames per second of a clip; none: every frame")
    tau_a: float = Field(
        1.0, description="anticipation time: the clip ends so many seconds before the action; -1: 1 s into it; "
        "-999: the clip is the action"
    )  # fmt: skip
    tau_o: float = Field(15.0, gt=0, description="observation time: seconds that frames are chosen from")
    tau_o_eval: float | None = Field(None, gt=0, description="the same in evaluation; none: tau_o")
    strategy: Literal["last_clip", "center_clip", "first_clip", "random_clip"] = Field(
        "last_clip", description="where a clip shorter than tau_o lies in it; evaluation turns random into center"
    )
    dynamic: bool = Field(False, description="in training cut up to half of the observation time at its start")
    drop: Literal["correct", "full_context_in", "action_banks"] = Field(
        "correct", description="keep actions with a frame before them, with all of tau_o before them, or with 2 s"
    )
    balanced: bool = Field(False, description="in training draw the class first, then one of its samples")
    repeat: float = Field(1.0, gt=0, description="length of an epoch in passes over the samples")
    compat: bool = Field(
        False,
        description="the released code with its faults: past labels by a skewed tie rule and from kept actions only, "
        "a frame exactly at the limit, 16-bit times of salads, black clips where nothing can be read",
    )

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        folds = {"egtea": 3, "salads": 5, "breakfast": 4}.get(self.dataset, 1)
        if self.fold > folds:
            raise ValueError(f"fold {self.fold} should be 1 to {folds} for {self.dataset}")
        if self.persons and self.persons[0] > self.persons[1]:
            raise ValueError(f"persons {list(self.persons)} should rise")
        if self.source == "features" and not self.features:
            raise ValueError("features names no LMDB: give folders, or rgb, flow, obj, igm")
        return self


class PixelConfig(Section):
    """What becomes of the frames of a clip; the crop is `model.vit.image`."""

    train_short_side: tuple[int, int] = Field((384, 425), description="range of the short side in training")
    short_side: int = Field(388, ge=1, description="short side in evaluation")
    flip: float = Field(0.5, ge=0, le=1, description="chance of a mirrored clip in training")
    jitter: tuple[float, float, float, float] = Field(
        (0.0, 0.0, 0.0, 0.0), description="in training: brightness, contrast, saturation, hue; zeros are off"
    )
    mean: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="subtracted from pixels in [0, 1]")
    std: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="divides them")


class VitConfig(Section):
    """The frame encoder: a pre-norm vision transformer whose names are timm's."""

    image: int = Field(384, ge=1, description="height and width of a frame in pixels")
    patch: int = Field(16, ge=1, description="height and width of a patch in pixels")
    width: int = Field(768, ge=1, description="channels of a token")
    layers: int = Field(12, ge=1, description="blocks")
    heads: int = Field(12, ge=1, description="attention heads of a block")
    checkpoint: bool = Field(False, description="gradient checkpointing: half the speed lost, most memory saved")
    freeze: bool = Field(False, description="the encoder does not learn")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.image % self.patch:
            raise ValueError(f"image {self.image} is no multiple of patch {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class DecoderConfig(Section):
    """The temporal causal decoder: a GPT-2 stack over the features of the frames."""

    width: int = Field(2048, ge=1, description="channels inside the decoder")
    layers: int = Field(6, ge=1, description="blocks")
    heads: int = Field(4, ge=1, description="attention heads of a block")
    dropout: float = Field(0.1, ge=0, lt=1, description="on embeddings, attention and residuals")
    positions: int = Field(1024, ge=1, description="rows of the position table, the longest sequence with rollout")
    output_len: int = Field(1, ge=1, description="steps decoded after the observed ones; each sees the one before")
    output_len_eval: int = Field(0, ge=0, description="the same in evaluation; 0: output_len")
    average_last: int = Field(1, ge=1, description="the prediction is the mean of so many last steps; 1: the last")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class PrototypeConfig(Section):
    """The vectors that stand for the actions: learnable visual ones, fixed language ones."""

    visual: str = Field("", description="start of the visual prototypes: a file of make_prototypes; empty: language's")
    language: str = Field("", description="encodings_*.pth of make_prototypes; empty: no semantic loss is possible")
    similarities: str = Field("", description="similarities_*.pth; empty: the cosines of the language encodings")
    freeze: bool = Field(False, description="the visual prototypes do not learn")
    values: Literal["visual", "language"] = Field("visual", description="what prototype attention mixes in")
    share: float = Field(1.0, gt=0, le=1, description="share of the actions that have a prototype; 1: all (paper: 0.1)")


class ModelConfig(Section):
    """The network; the released configurations differ in nothing else."""

    kind: Literal["sgear", "avt"] = Field("sgear", description="avt: the baseline without prototypes and TCA")
    input: Literal["video", "features"] = Field("video", description="frames through the ViT, or stored features")
    compat: bool = Field(
        False,
        description="answer exactly as the released code, whose prototype tokens mix the samples of a batch; "
        "false: every sample gets its own, best first",
    )
    width: int = Field(768, ge=1, description="channels of prototypes and decoder input, D")
    feature_dim: int = Field(1024, ge=1, description="channels of stored features: rgb, flow 1024; obj 352; irCSN 2048")
    vit: VitConfig = VitConfig()
    tca_blocks: int = Field(2, ge=0, description="temporal context aggregation blocks after the ViT; 0 is without")
    prototype_attention: bool = Field(True, description="mix prototypes near to the clip into its features")
    prototypes: PrototypeConfig = PrototypeConfig()
    nearest: Literal["clip", "frame"] = Field("clip", description="T prototypes nearest to the clip, or 1 per frame")
    merge: Literal["published", "clean"] = Field(
        "published",
        description="how attention heads are merged; published swaps heads and steps as the weights learned",
    )
    temperature: Literal["published", "learned"] = Field(
        "published",
        description="of the softmax over prototypes: sqrt(backbone width), or a parameter that starts there",
    )
    gradients: Literal["published", "both"] = Field(
        "published", description="on features the published semantic losses teach the prototypes alone; both: all"
    )
    transform_features: bool = Field(False, description="a residual MLP on stored features")
    freeze_transform: bool = Field(False, description="that MLP does not learn")
    feature_mixup: bool = Field(False, description="in training add up to 0.3 of another clip's features")
    decoder: DecoderConfig = DecoderConfig()
    freeze_decoder: bool = Field(False, description="the decoder does not learn")
    classify_past: bool = Field(True, description="classify the observed steps too")
    labels: tuple[LabelType, ...] = Field(("action",), description="what is classified, one linear layer each")
    dropout: float = Field(0.2, ge=0, lt=1, description="before the classifiers")
    init: tuple[tuple[str, ...], ...] = Field(
        (), description="weights to start from: [[file], [module, file], [module, prefix, file], ...]"
    )
    pretrained: str = Field("", description="a checkpoint of which the tensors named by `blocks` are taken")
    blocks: tuple[str, ...] = Field((), description="parts of the names to take from `pretrained`")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.kind == "sgear" and self.width % 64:
            raise ValueError(f"width {self.width} should be a multiple of 64, the channels of an attention head")
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels {list(self.labels)} should name at least one of action, verb, noun, none twice")
        if any(not len(entry) >= 1 for entry in self.init):
            raise ValueError("an entry of init is [file], [module, file] or [module, prefix, ..., file]")
        if bool(self.pretrained) != bool(self.blocks):
            raise ValueError("pretrained (a file) and blocks (parts of names to take from it) belong together")
        return self


class LossConfig(Section):
    """Weights of the terms; a term of weight 0 is left out."""

    feat: float = Field(1.0, ge=0, description="squared error of the decoder's next features")
    cls_action: float = Field(1.0, ge=0, description="cross-entropy of the next action")
    cls_verb: float = Field(1.0, ge=0, description="the same for verbs, where model.labels has them")
    cls_noun: float = Field(1.0, ge=0, description="the same for nouns")
    past_cls_action: float = Field(1.0, ge=0, description="cross-entropy of the actions seen in the observed frames")
    past_cls_verb: float = Field(0.0, ge=0, description="the same for verbs")
    past_cls_noun: float = Field(0.0, ge=0, description="the same for nouns")
    semantic: float = Field(4.0, ge=0, description="visual similarities as the language's (global_simContrast)")
    past_semantic: float = Field(0.0, ge=0, description="the same for observed steps (past_target_global_simContrast)")
    distance: float = Field(1.0, ge=0, description="distance to the prototype of the label (target_distance)")
    mask: bool = Field(True, description="unlabeled samples and steps count in no term; false: the released arithmetic")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup of clips and labels; 0 is off")
    balance: bool = Field(False, description="weight classes by the inverse of their frequency")


class ModuleRate(Section):
    """Learning rate and decay of one part of the model."""

    module: str = Field(description="start of the parameter names, such as backbone or future_predictor")
    lr: float = Field(ge=0, description="learning rate; 0 freezes")
    weight_decay: float = Field(ge=0, description="decay of weights")


class SgearOptim(OptimConfig):
    """How the model is optimized: core's options, with the published schedules and accumulation."""

    accumulation: Literal["sum", "mean"] = Field("sum", description="of the gradients of `accumulate` batches")
    scale_lr: Literal["none", "processes", "samples"] = Field(
        "none", description="multiply rates by the processes, or by processes x loader.batch_size, as released"
    )
    modules: tuple[ModuleRate, ...] = Field((), description="parts with another rate; all others learn with lr")
    bias_decay_scale: float = Field(1.0, ge=0, description="biases and batch norms decay by so much of weight_decay")
    decay_epochs: float = Field(0.0, ge=0, description="length of the cosine; 0: what the warm-up leaves of epochs")
    plateau: int = Field(0, ge=0, description="evaluations without a better metric before the rate falls by gamma")
    milestone_warmup: float = Field(0.0, ge=0, description="multistep: epochs of its own warm-up")
    milestone_warmup_start: float = Field(1e-5, ge=0, le=1, description="multistep: fraction of lr it starts at")


class EvalConfig(Section):
    """How a model is tested."""

    split: Literal["train", "val", "test", "test_seen", "test_unseen"] = Field(
        "val", description="which part, for the eval command; test of ek55 is test_seen and test_unseen"
    )
    batch_size: int = Field(3, ge=1, description="clips at a time")
    crops: Literal[1, 3] = Field(1, description="views of a frame: center, or top left, center and bottom right")
    flips: bool = Field(False, description="each view mirrored too")
    topk: int = Field(5, ge=1, description="actions listed per sample in the report")
    tau_a: tuple[float, ...] = Field((), description="further anticipation times to measure at, beside data.tau_a")


class PredictConfig(Section):
    """How a video of any length is answered."""

    input: Path = Field(Path("video.mp4"), description="a video, or a folder of videos")
    hop_s: float = Field(1.0, gt=0, description="seconds between two answers")
    tau_a: tuple[float, ...] = Field(
        (), description="further anticipation times to answer for; the model's own is data.tau_a, later ones decode on"
    )
    topk: int = Field(5, ge=1, description="actions listed per answer")

    @field_validator("tau_a")
    @classmethod
    def _lie_ahead(cls, times_s: tuple[float, ...]) -> tuple[float, ...]:
        if any(time_s <= 0 for time_s in times_s):
            raise ValueError(f"tau_a {list(times_s)} should be seconds above 0")
        return times_s


class ExtractConfig(Section):
    """How features are made of videos."""

    input: Path | None = Field(None, description="a video, or a folder of videos; none: all videos of the dataset")
    out: Path = Field(Path("features"), description="the feature database to make, a folder")
    every: int = Field(
        1, ge=1, le=10, description="of the 30 features a second; the reader takes the one before for a missing one"
    )


class DenseConfig(Section):
    """Dense anticipation of 50 Salads and Breakfast."""

    observe: tuple[float, ...] = Field((0.2, 0.3), min_length=1, description="shares of a video that are seen")
    predict: tuple[float, ...] = Field(
        (0.1, 0.2, 0.3, 0.5), min_length=1, description="shares after them whose frames are labeled"
    )

    @model_validator(mode="after")
    def _fit_a_video(self) -> Self:
        if not all(0 < share < 1 for share in (*self.observe, *self.predict)):
            raise ValueError(f"observe {list(self.observe)} and predict {list(self.predict)} should be between 0 and 1")
        if max(self.observe) + max(self.predict) > 1:
            raise ValueError(f"{max(self.observe):g} observed and {max(self.predict):g} predicted exceed the video")
        return self


class Config(Section):
    """S-GEAR: semantically guided action anticipation."""

    run: RunConfig = RunConfig(out=Path("runs/sgear/run"), seed=42)
    data: DataConfig = DataConfig()
    pixels: PixelConfig = PixelConfig()
    loader: LoaderConfig = LoaderConfig(batch_size=3, workers=10)
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: SgearOptim = SgearOptim(
        name="sgd", lr=1e-4, momentum=0.9, weight_decay=1e-5, epochs=50, warmup=20, schedule="cosine"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 where the GPU has it")
    compile: bool = Field(False, description="torch.compile the network")
    eval: EvalConfig = EvalConfig()
    predict: PredictConfig = PredictConfig()
    extract: ExtractConfig = ExtractConfig()
    dense: DenseConfig = DenseConfig()
    test_only: bool = Field(False, description="train: evaluate `ckpt`, or the best weights of run.out, and end")
    ckpt: str = Field("", description="weights to evaluate or predict with; empty: the best of run.out")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        low, high, crop = *self.pixels.train_short_side, self.model.vit.image
        if not crop <= low <= high or self.pixels.short_side < crop:
            raise ValueError(
                f"pixels.train_short_side {[low, high]} and pixels.short_side {self.pixels.short_side} should not be "
                f"below the crop, model.vit.image={crop}, and the range should rise"
            )
        if (self.data.source == "features") != (self.model.input == "features"):
            raise ValueError(
                f"data.source={self.data.source} and model.input={self.model.input} differ: features go with features"
            )
        return self
