"""Fetch UCF50 with kagglehub and say where it is.

    python -m projects.ucf50_x3d.download [--link data/ucf50/UCF50]

needs the extra `download` (`pip install kagglehub`) and a network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

HANDLE = "vineethakkinapalli/ucf50-action-recognition-dataset"
BY_HAND = (
    f"Download it by hand instead: https://www.kaggle.com/datasets/{HANDLE} (button `Download`, then the zip), unpack "
    "it, and pass the folder of classes as data.root=.../UCF50"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Download the dataset (about 3 GB, kept in kagglehub's cache) and link it to where the configurations look."""
    parser = argparse.ArgumentParser(prog="projects.ucf50_x3d.download", description=main.__doc__)
    parser.add_argument("--link", type=Path, default=Path("data/ucf50/UCF50"), help="link made to the dataset folder")
    args = parser.parse_args(argv)
    sys.stdout.write(f"dataset: {link(args.link)}\n")


def fetch() -> Path:
    """The folder of classes, downloaded unless it is in the cache; ends the program when that is not possible."""
    try:
        import kagglehub
    except ImportError:
        sys.exit(f"error: kagglehub is not installed (pip install kagglehub).\n{BY_HAND}")
    try:
        found = Path(kagglehub.dataset_download(HANDLE)).absolute() / "UCF50"
    except Exception as error:  # whatever its network code raises: the way out is the same
        sys.exit(f"error: {HANDLE} cannot be downloaded ({type(error).__name__}: {error}).\n{BY_HAND}")
    if not found.is_dir():
        sys.exit(f"error: {HANDLE} came without the folder UCF50 (expected {found}).\n{BY_HAND}")
    return found


def link(place: Path) -> Path:
    """Make `place` a link to the downloaded folder; a folder that is already there is left alone."""
    if place.exists():
        return place
    found = fetch()
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        if place.is_symlink():  # to a cache that is gone
            place.unlink()
        place.symlink_to(found, target_is_directory=True)
    except OSError:  # no right to make links (Windows): the folder itself is the answer
        return found
    return place


if __name__ == "__main__":
    main()
