"""Where the files of a dataset are below one folder, as the published code lays them out.

DATA/videos, DATA/external/rulstm/RULSTM (features), DATA/extracted_features; external/ for annotations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from projects.sgear.config import DataConfig

_SALADS = "breakfast_50salad_anticipation_annotations"
# annotations, rulstm (below external/); videos, features (below DATA/)
_PLACES: Mapping[str, tuple[str, str, tuple[str, ...], str]] = {
    "ek55": (
        "epic-kitchens-55-annotations",
        "rulstm/RULSTM/data/ek55",
        ("EpicKitchens/videos_ht256px/train", "EpicKitchens/videos_ht256px/test"),
        "external/rulstm/RULSTM/data_full/{name}",
    ),
    "ek100": (
        "epic-kitchens-100-annotations",
        "rulstm/RULSTM/data/ek100",
        (
            "EpicKitchens/videos_ht256px/train",
            "EpicKitchens/videos_ht256px/test",  # part of the test videos of EK55 became training videos of EK100
            "EpicKitchens100/videos_extension_ht256px",
        ),
        "external/rulstm/RULSTM/ek100_data_full/{name}",
    ),
    "egtea": (
        "rulstm/RULSTM/data/egtea",
        "rulstm/RULSTM/data/egtea",
        ("EGTEA/101020/videos",),
        "external/rulstm/RULSTM/egtea/TSN-C_3_egtea_action_CE_s{fold}_{name}_model_best_fcfull_hd",
    ),
    "salads": (f"{_SALADS}/cvpr18_data/50s_splits", f"{_SALADS}/annotations/50salads", ("50Salads/rgb",), "{name}"),
    "breakfast": (f"{_SALADS}/cvpr18_data/Breakfast", f"{_SALADS}/annotations/Breakfast", ("Breakfast",), "{name}"),
}


@dataclass(frozen=True)
class Layout:
    """The places of a configuration: what it names, else where `data.root` has it."""

    annotations: Path
    rulstm: Path
    videos: tuple[Path, ...]
    features: tuple[Path, ...]
    extra: Path  # DATA/videos/50Salads: activityAnnotations and timestamps


def resolve(cfg: DataConfig) -> Layout:
    """The places of the files; none of them has to exist yet."""
    data = cfg.root if cfg.root.name == "DATA" else cfg.root / "DATA"
    external = data.parent / "external"
    annotations, rulstm, videos, features = _PLACES[cfg.dataset]
    return Layout(
        annotations=cfg.annotations or external / annotations,
        rulstm=cfg.rulstm or external / rulstm,
        videos=cfg.videos or tuple(data / "videos" / place for place in videos),
        features=tuple(_features(name, features, data, cfg) for name in cfg.features),
        extra=data / "videos" / "50Salads",
    )


def _features(name: str, template: str, data: Path, cfg: DataConfig) -> Path:
    if name not in ("rgb", "flow", "obj", "igm"):
        return Path(name)
    published = data / template.format(name=name, fold=cfg.fold)
    extracted = data / "extracted_features" / cfg.dataset / name
    # The README of the published code has irCSN features here, its configuration beside the others: both are right.
    return extracted if name == "igm" and not published.exists() else published
