"""Every number somebody may tune. Config: diffusion, generation and evaluation; VlmConfig: the language stage.

The defaults are the published ones for Ego4D.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from core.config import Section
from core.data import LoaderConfig
from core.optim import OptimConfig
from core.run import RunConfig

DatasetName = Literal["ego4d", "epickitchen"]


class DataConfig(Section):
    """Which pairs of frames, which words, and where the features of the language model are."""

    root: Path = Field(Path("data/lego"), description="folder with EgoGen/, ego4d_train.json, ... as released")
    datasets: tuple[DatasetName, ...] = Field(("ego4d",), min_length=1, description="several are concatenated")
    prompt: str = Field(
        "llava_forecast_finetune", description="field of the JSON that is the prompt; action: the original label"
    )
    vllm: str = Field("", description="folder of the VLLM features; empty: the released one of each dataset")
    image_features: Literal["files", "patches", "frames", "projected"] = Field(
        "files",
        description="files: as released, (256, 5120); patches: CLIP patches in the same layout, (256, 1024), projected "
        "on the fly; frames: CLIP runs on the source frame, nothing is stored; projected: what the frozen projection "
        "makes of them is computed once, (256, 768) in 16 bit in cache.folder, from the frames where model.vision is "
        "named, else from the files (patches and frames need model.vision)",
    )
    vision_side: int = Field(224, ge=1, description="pixels of CLIP's input, where it runs on the frames")
    size: tuple[int, int] = Field((256, 256), description="height and width that frames are squeezed to")
    flip: float = Field(0.5, ge=0, le=1, description="chance of a mirrored pair in training")
    flip_words: bool = Field(False, description="a mirrored pair swaps left and right in its prompt (reference: no)")
    flip_features: bool = Field(False, description="a mirrored pair mirrors its grid of image features (reference: no)")
    limit: int = Field(0, ge=0, description="use the first so many pairs of each dataset only; 0: all")


class ModelConfig(Section):
    """The network: Stable Diffusion 1.5 with eight input channels, and LEGO's conditioning."""

    init: str = Field(
        "", description="Stable Diffusion 1.5, InstructPix2Pix or LEGO weights: a .ckpt, .safetensors or a folder"
    )
    tokenizer: str = Field(
        "openai/clip-vit-large-patch14",
        description="CLIP tokenizer: a folder, a hub name, or bpe_simple_vocab_16e6.txt.gz; folders given as init "
        "bring their own",
    )
    vision: str = Field("", description="folder of the VLLM (CLIP and mm_projector), for image features on the fly")
    clip: str = Field("", description="folder of CLIP ViT-L/14, when the VLLM's folder leaves the image tower out")
    features: Literal["both", "image", "text", "none"] = Field(
        "both", description="which features of the VLLM condition the UNet; none: InstructPix2Pix"
    )
    feature_width: int = Field(5120, ge=1, description="width of the VLLM features")
    train_conditioner: bool = Field(False, description="the projections and the mixer learn (reference: they do not)")
    dropout: float = Field(0.1, ge=0, lt=1, description="drop-out of the mixer, active in training also when frozen")
    width: int = Field(320, ge=32, multiple_of=32, description="channels of the UNet's first level")
    levels: tuple[int, ...] = Field((1, 2, 4, 4), min_length=2, description="multiples of width, level by level")
    blocks: int = Field(2, ge=1, description="residual blocks of a level")
    heads: int = Field(8, ge=1, description="attention heads")
    groups: int = Field(32, ge=1, description="groups of the UNet's norms; with one channel each, they forget colors")
    context: int = Field(768, ge=8, multiple_of=8, description="width of the text encoder and of all conditions")
    vae_width: int = Field(128, ge=32, multiple_of=32, description="channels of the autoencoder's first level")
    vae_levels: tuple[int, ...] = Field((1, 2, 4, 4), min_length=2, description="one level more halves once more")
    vae_groups: int = Field(32, ge=1, description="groups of the autoencoder's norms; they divide its widths")
    text_layers: int = Field(12, ge=1, description="layers of the text encoder")
    text_heads: int = Field(12, ge=1, description="heads of the text encoder")
    vocabulary: int = Field(49408, ge=2, description="tokens of the text encoder")
    checkpointing: bool = Field(False, description="recompute the UNet's activations in the backward pass")

    @property
    def uses_image(self) -> bool:
        """Whether image features condition the UNet."""
        return self.features in ("both", "image")

    @property
    def uses_text(self) -> bool:
        """Whether text features condition the UNet."""
        return self.features in ("both", "text")


class DiffusionConfig(Section):
    """The noise and what training does to the conditions."""

    steps: int = Field(1000, ge=2, description="noise levels")
    linear_start: float = Field(0.00085, gt=0, lt=1, description="first variance; the square roots rise linearly")
    linear_end: float = Field(0.012, gt=0, lt=1, description="last variance")
    scale_factor: float = Field(0.18215, gt=0, description="target latents times this have about unit variance")
    drop: float = Field(0.05, ge=0, le=1 / 3, description="share of: text dropped; text and source; source")
    draws: Literal["sample", "reference"] = Field(
        "sample",
        description="noise, time and drop-out are drawn from (seed, epoch, sample), the same for any number of "
        "processes; reference: from (seed, epoch, place in the batch), so that all processes draw alike",
    )


class CacheConfig(Section):
    """What the frozen networks say is computed once."""

    use: Literal["all", "latents", "text", "none"] = Field("all", description="what is cached")
    folder: Path = Field(
        Path("runs/lego/cache"),
        description="with fp16 98 kB for a pair, 118 kB for a prompt; 393 kB for a frame's image features",
    )
    precision: Literal["fp16", "fp32"] = Field("fp32", description="fp16 halves the size and rounds to 3 digits")


class SampleConfig(Section):
    """How frames are generated."""

    split: Literal["train", "val"] = Field("val", description="which part is generated")
    steps: int = Field(100, ge=1, description="calls of the UNet for a frame")
    solver: Literal["euler_ancestral", "dpmpp_2m"] = Field(
        "euler_ancestral", description="dpmpp_2m: DPM-Solver++(2M), no fresh noise, good with 20 to 30 steps"
    )
    text_scale: float = Field(7.5, description="guidance by the text and the features")
    image_scale: float = Field(1.5, description="guidance by the source frame")
    seed: int = Field(0, ge=0, description="with clip and action it decides a frame's noise")
    batch_size: int = Field(8, ge=1, description="frames at a time; three passes of the UNet each")
    weights: Literal["ema", "raw"] = Field("ema", description="moving average, or the raw weights of a checkpoint")
    stretch: Literal["minmax", "clamp"] = Field(
        "minmax", description="minmax: each frame's own range becomes 0..255, as published; clamp: [-1, 1] does"
    )
    quality: int = Field(75, ge=1, le=100, description="of the JPEG files; 75 is what was scored")
    shortcut: bool = Field(True, description="keys and values of the conditions are computed once for all steps")
    out: Path | None = Field(None, description="folder that gets images/; none: beside the weights, as published")


class ShowConfig(Section):
    """Samples on the way, drawn with the real sampler."""

    every: int = Field(2000, ge=0, description="optimizer steps between two grids of samples; 0: none")
    count: int = Field(4, ge=1, description="pairs of the validation part, the same each time")
    steps: int = Field(20, ge=1, description="sampler steps")


class PredictConfig(Section):
    """One frame and one action in, the next frame out."""

    image: Path = Field(Path("frame.jpg"), description="a picture, or a video with `time_s`")
    action: str = Field("pick up the knife", description="what happens next, in a few words")
    description: str = Field(
        "", description="a detailed prompt, or a .txt file with it; empty: the VLLM writes it, or the action is used"
    )
    time_s: float = Field(0.0, ge=0, description="where in a video the frame is taken")
    vllm: str = Field("", description="folder of the VLLM that writes the description and the features")
    count: int = Field(1, ge=1, description="frames to draw, each with noise of its own")
    out: Path | None = Field(None, description="folder for the answer; none: run.out/predict")


class EvalConfig(Section):
    """Which metrics, and where their networks are."""

    images: Path | None = Field(None, description="generated frames: a folder images/ or the one above; none: of ckpt")
    weights: Path = Field(Path("weights/lego/metrics"), description="folder with the networks of the metrics")
    metrics: tuple[str, ...] = Field((), description="names of metrics; empty: all whose networks are there")
    prompt: str = Field("llava_forecast_finetune", description="field of the JSON that BLIP captions are compared with")
    batch_size: int = Field(16, ge=1, description="frames at a time")
    baseline: bool = Field(False, description="score the unchanged source frames too: what doing nothing would reach")
    shown: int = Field(48, ge=0, description="frames in the report")


class Config(Section):
    """LEGO's diffusion stage: latent diffusion from a frame and enriched conditions to the frame of the action."""

    run: RunConfig = RunConfig(out=Path("runs/lego/ego4d"), seed=23, save_every=1000, eval_every=4)
    data: DataConfig = DataConfig()
    loader: LoaderConfig = LoaderConfig(batch_size=32, workers=8, seed=23)
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    cache: CacheConfig = CacheConfig()
    optim: OptimConfig = OptimConfig(
        name="adamw",
        lr=1e-4,
        weight_decay=0.01,
        epochs=240,
        schedule="constant",
        accumulate=4,
        ema=0.9999,
        ema_per="batch",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 where the GPU has it")
    compile: bool = Field(False, description="torch.compile the UNet")
    strategy: Literal["ddp", "fsdp"] = Field("ddp", description="how several processes share the network")
    show: ShowConfig = ShowConfig()
    sample: SampleConfig = SampleConfig()
    predict: PredictConfig = PredictConfig()
    eval: EvalConfig = EvalConfig()
    ckpt: str = Field("", description="weights to generate with; empty: the last of run.out")

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Config":
        stride = 2 ** (len(self.model.vae_levels) + len(self.model.levels) - 2)
        if any(side < stride or side % stride for side in self.data.size):
            raise ValueError(
                f"data.size={list(self.data.size)} should be multiples of {stride}, by which the autoencoder "
                "and the UNet reduce it"
            )
        if self.model.width % self.model.groups:
            raise ValueError(f"model.groups={self.model.groups} should divide model.width={self.model.width}")
        if self.model.train_conditioner and self.model.features == "none":
            raise ValueError("model.train_conditioner has nothing to train with model.features=none")
        kind = self.data.image_features
        if kind == "projected" and self.model.train_conditioner:
            raise ValueError(
                "data.image_features=projected keeps what the projection makes of a frame, and "
                "model.train_conditioner=true changes the projection; use frames, patches or files"
            )
        if kind in ("patches", "frames") and self.model.uses_image and not self.model.vision:
            raise ValueError(
                f"data.image_features={self.data.image_features} computes them on the fly: name the VLLM's folder with "
                "model.vision"
            )
        return self


class CurationConfig(Section):
    """Where the instruction data is: conversations about source frames of the training part."""

    file: Path | None = Field(
        None,
        description="LLaVA-format JSON; empty: curation_from_gpt/<dataset>_for_tuning_forecasting.json in data.root",
    )
    held_out: float = Field(0.0, ge=0, lt=1, description="share of the records that only validates")
    longest: int = Field(2048, ge=8, description="tokens of a conversation without the frame's; the rest is cut")
    narrator: Literal["count", "pattern"] = Field(
        "count", description="how a narration loses its #C C: by counting characters as published, or by pattern"
    )


class VlmModelConfig(Section):
    """The network that learns to describe."""

    init: str = Field("", description="folder of LLaVA: its own layout, transformers', ours, or an adapter")
    vision: str = Field("", description="folder of CLIP ViT-L/14, when init leaves the image tower out")
    train: Literal["all", "projector", "lora"] = Field(
        "all", description="all: projector and language model, as published; lora: projector and low-rank pairs"
    )
    rank: int = Field(128, ge=1, description="rank of the LoRA pairs")
    alpha: int = Field(256, gt=0, description="weight of the LoRA pairs, divided by the rank")
    checkpointing: bool = Field(True, description="recompute activations of the language model in the backward pass")


class ExtractConfig(Section):
    """What is written for the diffusion stage."""

    split: Literal["train", "val"] = Field("val", description="which part")
    vlm: str = Field("", description="folder of the language model; empty: what the run of run.out saved")
    image: Literal["files", "patches", "none"] = Field(
        "files",
        description="files: image features as released, 2.6 MB a frame; patches: a fifth; none: made on the fly",
    )
    text: bool = Field(True, description="write the text features of the descriptions")
    prompt: str = Field("", description="field of the dataset's JSON that gets the descriptions; empty: none")
    replace: bool = Field(False, description="write anew what another language model wrote")
    frame: Literal["source", "target"] = Field("source", description="target: describe what happens (not released)")
    temperature: float = Field(0.2, ge=0, description="of sampling; 0 takes the most likely token")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the likelihood that is sampled from")
    longest: int = Field(1024, ge=1, description="new tokens at most")
    batch_size: int = Field(8, ge=1, description="frames at a time")
    seed: int = Field(42, ge=0, description="with clip and action it decides a description")


class CurateConfig(Section):
    """How instruction data is made from labels, without the released one."""

    model: str = Field("", description="folder of a chat model of transformers")
    count: int = Field(20_000, ge=1, description="actions of the training part that are described")
    examples: Path | None = Field(None, description="JSON list of {action, objects, description}; none: ours")
    objects: str = Field("objects", description="field of the dataset's JSON with {name: box}; left out where absent")
    attempts: int = Field(3, ge=1, description="answers asked for until one is a description")
    words: tuple[int, int] = Field((8, 120), description="fewest and most words of a description")
    temperature: float = Field(0.7, ge=0, description="of sampling; 0 takes the most likely token, one attempt")
    longest: int = Field(256, ge=1, description="new tokens at most")
    seed: int = Field(0, ge=0, description="decides which actions, and with them what is drawn")


class VlmConfig(Section):
    """LEGO's language stage: LLaVA learns to describe how an action will be carried out in this view."""

    run: RunConfig = RunConfig(out=Path("runs/lego/vlm"), seed=42, save_every=150, keep=4)
    data: DataConfig = DataConfig()
    curation: CurationConfig = CurationConfig()
    loader: LoaderConfig = LoaderConfig(batch_size=16, workers=4, seed=42)
    model: VlmModelConfig = VlmModelConfig()
    bucket: int = Field(50, ge=1, description="batches among which texts of like length are put together; 1: none are")
    tokens: Literal["process", "all"] = Field(
        "process", description="the loss is a mean over the tokens of each process, as published, or over all of them"
    )
    optim: OptimConfig = OptimConfig(name="adamw", lr=2e-5, epochs=3, schedule="constant", clip_norm=1.0)
    warmup: Literal["log", "schedule"] = Field(
        "log",
        description="log: log-shaped over 3 % of the steps, then constant, what the published run really did; "
        "schedule: as optim says",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 where the GPU has it")
    strategy: Literal["ddp", "fsdp"] = Field("fsdp", description="how several processes share the network")
    extract: ExtractConfig = ExtractConfig()
    curate: CurateConfig = CurateConfig()
