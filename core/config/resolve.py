"""From defaults, files and overrides to one checked configuration, and back to YAML."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from core.config.section import ConfigError, Section, T, atoms, leaves, section_of
from core.config.source import Dumper, Node, expand, files, override, plain, shorten


def load(cls: type[T], path: str | Path | None = None, overrides: Iterable[str] = ()) -> T:
    """Defaults, then the file's base, then the file, then `key=value` and `@file` overrides in the order given.

    Sections merge key by key; every other value replaces the one before it.

    Raises:
        ConfigError: listing every problem, each with the file and line or the override that it came from.
    """
    problems: list[str] = []
    tree = _defaults(cls)
    for node in files(Path(path), problems) if path is not None else ():
        tree = _merge(cls, tree, node)
    for text, source in expand(overrides, problems):
        key, _, value = text.partition("=")
        tree = _assign(cls, tree, key.strip().split("."), override(value.strip(), source, problems))
    if problems:
        raise ConfigError(problems)
    for attempt in range(2):
        problems = list(_truths(cls, tree))
        try:
            cfg = cls.model_validate(plain(tree))
        except ValidationError as error:
            if attempt == 0 and _take_literally(tree, error.errors()):
                continue
            problems += _problems(cls, tree, error)
        break
    if problems:
        raise ConfigError(problems)
    return cfg


def dump(cfg: Section) -> str:
    """YAML that `load` turns into an equal configuration."""
    return yaml.dump(cfg.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def _defaults(cls: type[Section]) -> Node:
    """The defaults of a class, so that a section which is given in part keeps the rest of its owner's default."""
    fields = {name: field for name, field in cls.model_fields.items() if not field.is_required()}
    return Node({name: _given(field.get_default(call_default_factory=True)) for name, field in fields.items()})


def _given(value: Any) -> Node:
    if isinstance(value, Section):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    return Node({key: _given(item) for key, item in value.items()} if isinstance(value, dict) else value)


def _merge(cls: type[Section] | None, old: Node, new: Node) -> Node:
    """The new value, or a union of both when they are the same section."""
    if cls is None or not isinstance(old.value, dict) or not isinstance(new.value, dict):
        return new
    both = dict(old.value)
    for key, node in new.value.items():
        both[key] = _merge(section_of(cls.model_fields.get(key)), both.get(key, Node(None)), node)
    return Node(both, source=new.source)


def _assign(cls: type[Section] | None, old: Node, keys: Sequence[str], new: Node) -> Node:
    """The tree with one value changed at a dotted key."""
    if not keys:
        return _merge(cls, old, new)
    inside = old.value if isinstance(old.value, dict) else {}
    child = section_of(cls.model_fields.get(keys[0])) if cls else None
    below = _assign(child, inside.get(keys[0], Node(None)), keys[1:], new)
    return Node({**inside, keys[0]: below}, source=new.source)


def _take_literally(tree: Node, errors: Iterable[ErrorDetails]) -> bool:
    """Where text was expected and `2024` or `true` was written, put the text back; True when anything changed."""
    changed = False
    for error in errors:
        _, node, (parent, key) = _locate(tree, error)
        wants_text = error["type"] in {"string_type", "path_type", "literal_error"}
        if wants_text and node is not None and node.text is not None and node.text != node.value:
            parent[key] = Node(node.text, node.text, node.source)
            changed = True
    return changed


def _locate(tree: Node, error: ErrorDetails) -> tuple[str, Node | None, tuple[Any, Any]]:
    """The key of an error as users write it, the node there if one was given, and (container, index) that hold it."""
    key = ""
    node: Any = tree
    place: tuple[Any, Any] = (None, None)
    for part in error["loc"]:
        inside = node.value if isinstance(node, Node) else node
        here = isinstance(part, int) and isinstance(inside, list | tuple) and part < len(inside)
        here = here or (isinstance(inside, dict) and part in inside)
        if here:
            node, place = inside[part], (inside, part)
        elif error["type"] != "missing" or part != error["loc"][-1] or not isinstance(inside, dict):
            continue  # pydantic's name for a member of a union, which nobody wrote
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
        if not here:
            return key, None, (None, None)
    return key, node if isinstance(node, Node) else None, place


def _truths(cls: type[Section], tree: Node, prefix: str = "") -> Iterator[str]:
    """Problems of the kind `lr: true`, which pydantic would read as 1.0."""
    for name, node in tree.value.items():
        if (field := cls.model_fields.get(name)) is None:
            continue
        section = section_of(field)
        allowed = set(atoms(field.annotation))
        items = node.value if isinstance(node.value, list) else [node]
        if section is not None and isinstance(node.value, dict):
            yield from _truths(section, node, f"{prefix}{name}.")
        elif allowed & {int, float} and bool not in allowed and any(isinstance(plain(item), bool) for item in items):
            yield f"{prefix}{name}: should be a number, got {shorten(plain(node))} ({node.source})"


def _problems(cls: type[Section], tree: Node, error: ValidationError) -> list[str]:
    """One line for each error of pydantic, in words for the person who wrote the file."""
    lines: dict[str, None] = {}  # an ordered set: the members of a union repeat themselves
    for item in error.errors():
        key, node, _ = _locate(tree, item)
        source = f" ({node.source})" if node and node.source != key else ""
        if item["type"] == "missing" and node is not None:
            line = f"{key}: too few values, got {shorten(plain(node))}{source}"
        elif item["type"] == "missing":
            line = f"{key}: is required and has no default; write {key}=..."
        elif item["type"] == "extra_forbidden":
            line = f"{key}: unknown key; {_nearest(cls, key)}{source}"
        elif item["type"] in {"value_error", "assertion_error"}:
            text = str(item["ctx"]["error"]) or item["msg"]
            line = f"{key}: {text}{source}" if key else f"{text}{source}"
        else:
            message = item["msg"].replace("Input should", "should").replace("valid dictionary", "section (key: value)")
            message = message.replace(" or instance of " + item.get("ctx", {}).get("class_name", ""), "")
            line = f"{key}: {message}, got {shorten(item['input'])}{source}"
        lines[line] = None
    return list(lines)


def _nearest(cls: type[Section], key: str) -> str:
    """What the writer of an unknown key may have meant."""
    *parents, leaf = key.split(".")
    owner: type[Section] | None = cls
    for name in parents:
        owner = section_of(owner.model_fields.get(name)) if owner else None
    prefix = ".".join(parents) + "." if parents else ""
    siblings = [prefix + name for name in owner.model_fields] if owner else []
    everywhere = [full for full, _, _ in leaves(cls)]
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.7)
    near = near or [full for full in everywhere if full.split(".")[-1] == leaf][:3]
    near = near or difflib.get_close_matches(key, siblings + everywhere, n=1, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"valid here: {', '.join(siblings or everywhere)}"
