"""Where the weights of the metrics lie; a missing one is named with its place, and the other metrics still run."""

from __future__ import annotations

from pathlib import Path

# What to put into the folder of the weights, and where its owners publish it.
SOURCES = {
    "pt_inception-2015-12-05-6726825d.pth": "release fid_weights of the repository mseitzer/pytorch-fid",
    "alexnet-owt-7be5be79.pth": "torchvision's AlexNet_Weights.IMAGENET1K_V1",
    "vgg16-397923af.pth": "torchvision's VGG16_Weights.IMAGENET1K_V1",
    "squeezenet1_1-b8a52dc0.pth": "torchvision's SqueezeNet1_1_Weights.IMAGENET1K_V1",
    "clip-vit-large-patch14": "hub folder openai/clip-vit-large-patch14 (config.json and weights)",
    "egovlp.pth": "LEGO-Metrics, or the repository showlab/EgoVLP",
    "epic_mir_plus.pth": "LEGO-Metrics, or the repository showlab/EgoVLP",
    "distilbert-base-uncased": "hub folder distilbert-base-uncased (the tokenizer's files)",
    "bert-base-uncased": "hub folder bert-base-uncased (the tokenizer's files)",
    "model_base_caption_capfilt_large.pth": "LEGO-Metrics, or the repository salesforce/BLIP",
    "model_large_caption.pth": "LEGO-Metrics, or the repository salesforce/BLIP",
}


class MissingWeightsError(ValueError):
    """A file that a metric needs is not in the folder of the weights."""


def find(folder: str | Path, name: str) -> Path:
    """The file or folder `name` of the metrics' weights.

    Raises:
        MissingWeightsError: naming the place to put it and who publishes it.
    """
    path = Path(folder) / name
    if not path.exists():
        raise MissingWeightsError(f"{path} is missing: put it there ({SOURCES[name]})")
    return path
