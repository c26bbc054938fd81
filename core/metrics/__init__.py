"""Results by sample id, merged over processes, and the numbers that papers report.

The numbers are pure functions of whole arrays: tensors or arrays in, float64 arithmetic, fractions from 0 to 1 out
(times 100 where a paper prints percent), 0 where a share would be 0 of 0.
"""

from core.metrics.classification import (
    Averages,
    Scores,
    accuracy,
    average_precision,
    class_mean,
    class_mean_recall,
    confusion,
    multilabel_ap,
    precision_recall_f1,
    ranks,
    top_k,
)
from core.metrics.collect import Collector
from core.metrics.detection import (
    Actions,
    Detections,
    DetectionScores,
    detection_ap,
    detection_map,
    distinct,
    match_detections,
    point_map,
    recall_at,
    segment_iou,
)
from core.metrics.image import frechet_distance, psnr
from core.metrics.sequence import aued, edit_distance, edit_distance_at, prefix_distances

__all__ = [
    "Actions",
    "Averages",
    "Collector",
    "DetectionScores",
    "Detections",
    "Scores",
    "accuracy",
    "aued",
    "average_precision",
    "class_mean",
    "class_mean_recall",
    "confusion",
    "detection_ap",
    "detection_map",
    "distinct",
    "edit_distance",
    "edit_distance_at",
    "frechet_distance",
    "match_detections",
    "multilabel_ap",
    "point_map",
    "precision_recall_f1",
    "prefix_distances",
    "psnr",
    "ranks",
    "recall_at",
    "segment_iou",
    "top_k",
]
