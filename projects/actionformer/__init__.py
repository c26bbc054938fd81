"""When does what happen in this video? ActionFormer, SnapFormer and TBTFormer on features of any extractor.

The names below are imported when they are asked for: `from projects.actionformer import validate_config`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from projects.actionformer.constraints import (
        TemporalConstraints,
        enforce_class_constraints,
        merge_close_detections,
    )
    from projects.actionformer.loss_log import LossLogger, compute_iou_stats, compute_loss_breakdown
    from projects.actionformer.model import build
    from projects.actionformer.official import config_from, load_config, make_meta_arch
    from projects.actionformer.ranges import compute_adaptive_ranges, suggest_config_ranges
    from projects.actionformer.validation import ConfigurationError, validate_config

_HOMES = {
    "ConfigurationError": "validation",
    "LossLogger": "loss_log",
    "TemporalConstraints": "constraints",
    "build": "model",
    "compute_adaptive_ranges": "ranges",
    "compute_iou_stats": "loss_log",
    "compute_loss_breakdown": "loss_log",
    "config_from": "official",
    "enforce_class_constraints": "constraints",
    "merge_close_detections": "constraints",
    "load_config": "official",
    "make_meta_arch": "official",
    "suggest_config_ranges": "ranges",
    "validate_config": "validation",
}

__all__ = [
    "ConfigurationError",
    "LossLogger",
    "TemporalConstraints",
    "build",
    "compute_adaptive_ranges",
    "compute_iou_stats",
    "compute_loss_breakdown",
    "config_from",
    "enforce_class_constraints",
    "load_config",
    "make_meta_arch",
    "merge_close_detections",
    "suggest_config_ranges",
    "validate_config",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
