"""Where everything is published, and how it gets into its place: fetched from the hub, unpacked, counted.

python -m projects.lego.download                                   what there is, where, and how large
python -m projects.lego.download fetch LEGO-Ego4D --to weights/lego  from the hub, resumable
python -m projects.lego.download unpack EgoGen.zip features.zip --to data/lego
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from core.checkpoint.files import replacing
from projects.lego.archives import open_parts
from projects.lego.metrics.places import SOURCES


class Published(NamedTuple):
    """A repository of the hub and what it is for."""

    hub: str
    what: str


PUBLISHED = {
    "LEGO-Ego4D": Published(
        "bolinlai/LEGO-Ego4D", "tuned VLLM and diffusion checkpoints for Ego4D, 7.8 GB each of the latter"
    ),
    "LEGO-EpicKitchens": Published("bolinlai/LEGO-EpicKitchens", "the same for EPIC-KITCHENS"),
    "SD1.5-pretrained": Published("bolinlai/SD1.5-pretrained", "Stable Diffusion 1.5 to start from (4 GB)"),
    "LEGO-Metrics": Published("bolinlai/LEGO-Metrics", "networks of the EgoVLP and BLIP scores"),
    "LEGO-Dataset": Published("bolinlai/LEGO-Dataset", "frames and JSON files: put its zips through unpack"),
    "LEGO-VLLM-Features-Ego4D": Published("bolinlai/LEGO-VLLM-Features-Ego4D", "features, about 250 GB, in split zips"),
    "LEGO-VLLM-Features-EpicKitchens": Published("bolinlai/LEGO-VLLM-Features-EpicKitchens", "features, about 190 GB"),
    "llava": Published("liuhaotian/llava-llama-2-13b-chat-lightning-preview", "what the VLLM is tuned from (26 GB)"),
    "clip": Published("openai/clip-vit-large-patch14", "image tower, tokenizer and CLIP score (1.7 GB)"),
    "instruct-pix2pix": Published("timbrooks/instruct-pix2pix", "another start of the diffusion stage"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """List, fetch or unpack; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("list", "fetch", "unpack"), default="list")
    parser.add_argument("names", nargs="*", help="names of the list, or zip archives (the .zip of a split one)")
    parser.add_argument("--to", type=Path, default=Path("data/lego"), help="folder")
    args = parser.parse_args(argv)
    try:
        for name in args.names:
            said = fetch(name, args.to) if args.what == "fetch" else unpack(Path(name), args.to)
            sys.stdout.write(f"{said}\n")
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    if args.what == "list":
        sys.stdout.write(listing())
    return 0


def listing() -> str:
    """What is published where, as text."""
    lines = [f"  {name:<32} {entry.hub:<52} {entry.what}" for name, entry in PUBLISHED.items()]
    places = [f"  {name:<42} {source}" for name, source in SOURCES.items()]
    return "\n".join(["on the hub (fetch NAME):", *lines, "", "weights of the metrics (eval.weights):", *places, ""])


def fetch(name: str, to: Path) -> str:
    """A repository of the hub, into to/name; what is there already is not fetched again.

    Raises:
        ValueError: for an unknown name, or when the hub cannot be reached.
    """
    if name not in PUBLISHED:
        raise ValueError(f"{name} is not known here; there are {', '.join(PUBLISHED)}")
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(PUBLISHED[name].hub, local_dir=to / name)
    except Exception as error:  # the hub's client has dozens of kinds
        raise ValueError(f"{PUBLISHED[name].hub} cannot be fetched: {str(error).splitlines()[0]}") from None


def unpack(archive: Path, to: Path) -> str:
    """All files of an archive, split or not, into a folder; files of the right size are kept, so it may be repeated.

    Raises:
        ValueError: for a missing part, a damaged archive, or an entry that would leave the folder.
    """
    made = kept = 0
    with open_parts(archive) as opened:
        for entry in tqdm(opened.infolist(), desc=archive.name, unit="file", disable=None):
            path = to / entry.filename
            if not path.resolve().is_relative_to(to.resolve()):
                raise ValueError(f"{archive}: {entry.filename} would be written outside of {to}")
            if entry.is_dir():
                continue
            if path.is_file() and path.stat().st_size == entry.file_size:
                kept += 1
                continue
            with opened.open(entry) as source, replacing(path) as temporary, temporary.open("wb") as file:
                while block := source.read(1 << 20):
                    file.write(block)
            made += 1
    return f"{archive.name}: {made} files unpacked into {to}, {kept} were there"


if __name__ == "__main__":
    raise SystemExit(main())
