"""From what the network says to detections: candidates, suppression, voting, seconds, outside scores."""

from projects.actionformer.postprocess.decode import decode
from projects.actionformer.postprocess.detections import Detections
from projects.actionformer.postprocess.suppression import suppress
from projects.actionformer.postprocess.voting import vote

__all__ = ["Detections", "decode", "suppress", "vote"]
