"""What was written, and where: YAML files and overrides as trees of nodes that know their origin."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Node:
    """A value that knows how and where it was written; `value` holds nodes when it is a dict or a list."""

    value: Any
    text: str | None = None
    source: str = "default"


def plain(node: Any) -> Any:
    """The value of a node without its origins, as pydantic takes it."""
    value = node.value if isinstance(node, Node) else node
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def shorten(value: Any) -> str:
    """A value as an error message shows it."""
    text = repr(str(value)) if isinstance(value, Path) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-4` is a number, while `on`, `1:30`, `007` and `2024-01-01` stay text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute


class Dumper(yaml.SafeDumper):
    """Lists on one line; text that either version of YAML would read as something else is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value that occurs twice twice."""
        return True


_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
for _tag, _pattern, _first in (
    ("bool", re.compile("true$|True$|TRUE$|false$|False$|FALSE$"), "tTfF"),
    ("null", re.compile("~$|null$|Null$|NULL$|$"), ["~", "n", "N", ""]),
    ("int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))
_TEXT, _ODD_LINE_ENDS = "tag:yaml.org,2002:str", set("\x85\u2028\u2029")
Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)
Dumper.add_representer(  # PyYAML writes these line ends raw and reads them back as spaces
    str, lambda dumper, data: dumper.represent_scalar(_TEXT, data, style='"' if _ODD_LINE_ENDS & set(data) else None)
)


def _read(text: str, name: str, problems: list[str], *, lines: bool = True) -> Node | None:
    """The nodes of a YAML text, or None; syntax errors and duplicate keys go to `problems`."""
    loader = _Loader(text)

    def build(node: yaml.Node, key: str, above: tuple[yaml.Node, ...]) -> Node:
        source = f"{name}:{node.start_mark.line + 1}" if lines else name
        if any(node is one for one in above):
            raise yaml.MarkedYAMLError(problem="an alias contains itself", problem_mark=node.start_mark)
        if not node.tag.startswith("tag:yaml.org,2002:") or "/" in node.tag:
            raise yaml.MarkedYAMLError(problem=f"the tag {node.tag} is not allowed", problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            values: dict[str, Node] = {}
            for key_node, value_node in node.value:
                part = str(loader.construct_object(key_node, deep=True))
                full = f"{key}.{part}" if key else part
                if part in values:
                    again = f" and line {key_node.start_mark.line + 1}" if lines else ""
                    problems.append(f"{full}: given twice ({values[part].source}{again})")
                values[part] = build(value_node, full, (*above, node))
            return Node(values, source=source)
        if isinstance(node, yaml.SequenceNode):
            return Node([build(item, key, (*above, node)) for item in node.value], source=source)
        return Node(loader.construct_object(node), node.value, source)

    try:
        root = loader.get_single_node()
        return Node({}, source=name) if root is None else build(root, "", ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if lines and mark else name
        problems.append(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}")
    except ValueError as error:
        problems.append(f"{name}: not valid YAML: {error}")
    finally:
        loader.dispose()
    return None


def _file(path: Path, problems: list[str]) -> Node:
    """The nodes of one YAML file; an empty mapping after a problem."""
    text = _text(path, "*.yaml", problems)
    node = _read(text, str(path), problems) if text is not None else None
    if node is None:
        return Node({})
    if not isinstance(node.value, dict):
        problems.append(f"{path}: should hold `key: value` lines, got {shorten(plain(node))}")
        return Node({})
    return node


def files(path: Path, problems: list[str]) -> list[Node]:
    """The file, after the one that it names as its base."""
    node = _file(path, problems)
    base = node.value.pop("base", None)
    if base is None:
        return [node]
    if not isinstance(base.value, str):
        problems.append(f"base: should be the path of one YAML file, got {shorten(plain(base))} ({base.source})")
        return [node]
    below = _file(path.parent / base.value, problems)
    if "base" in below.value:
        source = below.value.pop("base").source
        problems.append(f"base: a base file has no base of its own; say in one file what differs ({source})")
    return [below, node]


def _text(path: Path, pattern: str, problems: list[str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        reason = "no such file"
    except IsADirectoryError:
        reason, path = "a folder, not a file", path / "?"
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read: {error}")
        return None
    folder = path.parent
    names = sorted(file.name for file in folder.glob(pattern))
    near = difflib.get_close_matches(path.name, names, n=1)
    if names:
        hint = (f"did you mean {near[0]}? " if near else "") + f"{folder} holds {', '.join(names)}"
    else:
        hint = f"{folder} holds no {pattern}" if folder.is_dir() else f"there is no folder {folder} either"
    problems.append(f"{folder if path.name == '?' else path}: {reason}; {hint}")
    return None


def expand(overrides: Iterable[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    """Overrides with `@file` replaced by its lines; yields (key=value, source)."""
    for item in overrides:
        if item.startswith("@"):
            text = _text(Path(item[1:]), "*.txt", problems) or ""
            lines = [(line.strip(), f"{item}:{number}") for number, line in enumerate(text.splitlines(), 1)]
            written = [(line, source) for line, source in lines if line and not line.startswith("#")]
        else:
            written = [(item, item)]
        for line, source in written:
            if KEY_VALUE.match(line):
                yield line, source
            else:
                problems.append(f"{line}: an override is written key=value, without dashes or spaces ({source})")


KEY_VALUE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*\s*=")


def override(value: str, source: str, problems: list[str]) -> Node:
    """The value of an override: YAML where it is, otherwise the text itself (`*.mp4`)."""
    found: list[str] = []
    node = _read(value, source, found, lines=False)
    if node is None and not value.startswith(("[", "{", '"', "'")):
        return Node(value, value, source)
    problems += found
    if node is None or not value:
        return Node(None, value, source)
    return node if node.text is not None else Node(node.value, value, source)
