"""What enters and leaves a run: checkpoints to resume from, weights to start with or to publish, whole files."""

from core.checkpoint.checkpoints import Checkpoints
from core.checkpoint.files import fetch, write_atomic
from core.checkpoint.pickles import StandIn, read_pickle
from core.checkpoint.store import Store
from core.checkpoint.weights import NUMPY, LoadReport, Rule, load_weights, read_inert, read_weights, save_weights

__all__ = [
    "NUMPY",
    "Checkpoints",
    "LoadReport",
    "Rule",
    "StandIn",
    "Store",
    "fetch",
    "load_weights",
    "read_inert",
    "read_pickle",
    "read_weights",
    "save_weights",
    "write_atomic",
]
