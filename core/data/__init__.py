"""From samples to batches on the device: the same ones for any number of workers, processes and restarts.

A dataset is anything with `__len__` and `sample(index, rng)`. All randomness is made of (seed, epoch, index), and
nothing is drawn from the global generators.
"""

from core.data.batches import Batch, Sample, pad, stack, to_device
from core.data.loader import Coverage, Loader, LoaderConfig, TooManyBadFiles, WorkerDied
from core.data.order import Order, Sampler
from core.data.reader import Dataset, SampleError

__all__ = [
    "Batch",
    "Coverage",
    "Dataset",
    "Loader",
    "LoaderConfig",
    "Order",
    "Sample",
    "SampleError",
    "Sampler",
    "TooManyBadFiles",
    "WorkerDied",
    "pad",
    "stack",
    "to_device",
]
