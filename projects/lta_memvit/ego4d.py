"""Ego4D's FHO-LTA annotation files, v1 and v2, as they are published: actions of a clip, names of the classes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FILES = {"train": "fho_lta_train.json", "val": "fho_lta_val.json", "test": "fho_lta_test_unannotated.json"}
TAXONOMY = "fho_lta_taxonomy.json"
VERSIONS = {(115, 478): "v1", (117, 521): "v2"}  # by the number of verbs and nouns
UNKNOWN = -1  # the label of an action whose class is not published


class Action(NamedTuple):
    """One annotated segment of a clip; times count from the clip's start, labels are class ids or `UNKNOWN`."""

    clip_uid: str
    number: int  # `action_idx`: order within the clip, by the point of no return
    start_s: float
    end_s: float
    verb: int
    noun: int
    video_uid: str = ""
    clip_start_s: float = 0.0  # where the clip begins in its source video

    @property
    def id(self) -> str:
        """The name by which the challenge knows what follows this action, and by which we know the action."""
        return f"{self.clip_uid}_{self.number}"


class Taxonomy(NamedTuple):
    """Names of the classes; the place of a name is its label."""

    verbs: tuple[str, ...]
    nouns: tuple[str, ...]

    def __str__(self) -> str:
        version = VERSIONS.get((len(self.verbs), len(self.nouns)))
        return f"{len(self.verbs)} verbs, {len(self.nouns)} nouns" + (f" (Ego4D {version})" if version else "")


def read_actions(path: Path) -> list[Action]:
    """The actions of an official file, in file order; those of the test file have no labels.

    Raises: ValueError naming the file, and the entry where one is malformed.
    """
    content = _load(path)
    entries = content.get("clips") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected an object with a list `clips`, as in {', '.join(FILES.values())}")
    return [_action(path, number, entry) for number, entry in enumerate(entries)]


def read_taxonomy(path: Path) -> Taxonomy:
    """The class names of an official file. Raises: ValueError naming the file."""
    content = _load(path)
    names = [content.get(key) if isinstance(content, dict) else None for key in ("verbs", "nouns")]
    for found in names:
        if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
            raise ValueError(f"{path}: expected an object with two lists of names, `verbs` and `nouns`")
    return Taxonomy(*(tuple(found) for found in names if found))


def by_clip(actions: Iterable[Action]) -> dict[str, tuple[Action, ...]]:
    """The actions of every clip in time order; clips in the order of their first appearance."""
    clips: dict[str, list[Action]] = {}
    for action in actions:
        clips.setdefault(action.clip_uid, []).append(action)
    return {name: tuple(sorted(found, key=lambda action: action.number)) for name, found in clips.items()}


def check_labels(path: Path, actions: Sequence[Action], taxonomy: Taxonomy) -> None:
    """Raise ValueError when a label has no name: annotations and taxonomy are of different versions."""
    for kind, names in (("verb", taxonomy.verbs), ("noun", taxonomy.nouns)):
        worst = max((getattr(action, kind) for action in actions), default=UNKNOWN)
        if worst >= len(names):
            raise ValueError(
                f"{path}: {kind}_label {worst} has no name among {len(names)} in {TAXONOMY}; take all annotation files "
                "from one version of Ego4D (v1 and v2 number their classes differently)"
            )


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist; link Ego4D's annotation files there, or say where they are with data.annotations="
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}); download it again") from None


def _action(path: Path, number: int, entry: Any) -> Action:
    try:
        return Action(
            clip_uid=str(entry["clip_uid"]),
            number=int(entry["action_idx"]),
            start_s=float(entry["action_clip_start_sec"]),
            end_s=float(entry["action_clip_end_sec"]),
            verb=int(entry.get("verb_label", UNKNOWN)),
            noun=int(entry.get("noun_label", UNKNOWN)),
            video_uid=str(entry.get("video_uid", "")),
            clip_start_s=float(entry.get("clip_parent_start_sec", 0.0)),
        )
    except KeyError as error:
        raise ValueError(f"{path}, clips[{number}]: the key {error} is missing") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}, clips[{number}]: {error}; expected an entry of the official schema") from None
