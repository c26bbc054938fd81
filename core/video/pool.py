"""Processes for work on many videos."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that start clean (no decoder, lock or thread of this one) and share one import of this package."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["core.video"])
    return ProcessPoolExecutor(workers, mp_context=context)
