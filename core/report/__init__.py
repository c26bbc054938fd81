"""One HTML page that explains a run or a prediction: opens anywhere, asks the network for nothing."""

from core.report.page import Page
from core.report.timelines import CurveTrack, Segment, SegmentTrack

__all__ = ["CurveTrack", "Page", "Segment", "SegmentTrack"]
