"""Configuration: frozen, checked sections made from a YAML file and overrides, and turned back into YAML."""

import difflib
import itertools
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined


class Section(BaseModel):
    """Base of every configuration class: values cannot change, unknown keys are refused, defaults are checked too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, protected_namespaces=()
    )


T = TypeVar("T", bound=Section)


class ConfigError(ValueError):
    """Everything wrong with a configuration; `problems` holds one line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n  ".join([f"{count} in the configuration", *self.problems]))


def parse(cls: type[T], argv: Sequence[str] | None = None) -> T:
    """Turn `[CONFIG.yaml] [@OVERRIDES.txt ...] [KEY=VALUE ...] [--print | --help]` into a checked configuration.

    `--help` and `--print` exit with 0; problems go to stderr and exit with 2.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(args):
        _exit(sys.stdout, _usage(cls), 0)
    try:
        path, overrides, show = _arguments(args)
        cfg = load(cls, path, overrides)
    except ConfigError as error:
        _exit(sys.stderr, f"error: {error}\n  (--help lists all keys)\n", 2)
    if show:
        _exit(sys.stdout, dump(cfg), 0)
    return cfg


def load(cls: type[T], path: str | Path | None = None, overrides: Iterable[str] = ()) -> T:
    """Defaults, then the file's base, then the file, then `key=value` and `@file` overrides in the order given.

    Sections merge key by key; every other value replaces the one before it.

    Raises:
        ConfigError: listing every problem, each with the file and line or the override that it came from.
    """
    problems: list[str] = []
    tree = _defaults(cls)
    for node in _files(Path(path), problems) if path is not None else ():
        tree = _merge(cls, tree, node)
    for text, source in _expand(overrides, problems):
        key, _, value = text.partition("=")
        tree = _assign(cls, tree, key.strip().split("."), _override(value.strip(), source, problems))
    if problems:
        raise ConfigError(problems)
    for attempt in range(2):
        problems = list(_truths(cls, tree))
        try:
            cfg = cls.model_validate(_plain(tree))
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
    return yaml.dump(cfg.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def flatten(cfg: Section) -> dict[str, Any]:
    """Every value by its dotted key, in the order of declaration."""
    flat: dict[str, Any] = {}
    for name in type(cfg).model_fields:
        value = getattr(cfg, name)
        flat |= (
            {f"{name}.{key}": sub for key, sub in flatten(value).items()}
            if isinstance(value, Section)
            else {name: value}
        )
    return flat


def describe(cls: type[Section], width: int = 120) -> str:
    """A table of key, type, default and description, wrapped at `width` columns."""
    rows = [
        (key, _type_text(field), _default_text(field, default), field.description or "")
        for key, field, default in _leaves(cls)
    ]
    limits = (40, 30, 24)  # a longer cell pushes the rest of its row to the next line instead of widening the table
    rows = [("key", "type", "default", "description"), *rows]
    sizes = [max(len(row[i]) for row in rows if len(row[i]) <= limits[i]) for i in range(3)]
    indent = sum(sizes) + 6
    lines = []
    for *cells, text in rows:
        line = ""
        for start, size, cell in zip(itertools.accumulate([0, *(s + 2 for s in sizes)]), sizes, cells, strict=False):
            if len(line) > start:
                lines.append(line.rstrip())
                line = ""
            line = f"{line:<{start}}{cell:<{size}}  "
        first, *more = textwrap.wrap(text, max(20, width - indent)) or [""]
        if len(line) > indent:
            lines.append(line.rstrip())
            line = ""
        lines += [f"{line:<{indent}}{first}".rstrip(), *(" " * indent + part for part in more)]
    return "\n".join(lines) + "\n"


def program() -> str:
    """The command that runs here, without its arguments: `python -m projects.x.train`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {Path(sys.argv[0]).name}"


# --- what was written, and where ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Node:
    """A value that knows how and where it was written; `value` holds nodes when it is a dict or a list."""

    value: Any
    text: str | None = None
    source: str = "default"


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-4` is a number, while `on`, `1:30`, `007` and `2024-01-01` stay text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute


class _Dumper(yaml.SafeDumper):
    """Lists on one line; text that either version of YAML would read as something else is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
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
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)
_Dumper.add_representer(  # PyYAML writes these line ends raw and reads them back as spaces
    str, lambda dumper, data: dumper.represent_scalar(_TEXT, data, style='"' if _ODD_LINE_ENDS & set(data) else None)
)


def _read(text: str, name: str, problems: list[str], *, lines: bool = True) -> _Node | None:
    """The nodes of a YAML text, or None; syntax errors and duplicate keys go to `problems`."""
    loader = _Loader(text)

    def build(node: yaml.Node, key: str, above: tuple[yaml.Node, ...]) -> _Node:
        source = f"{name}:{node.start_mark.line + 1}" if lines else name
        if any(node is one for one in above):
            raise yaml.MarkedYAMLError(problem="an alias contains itself", problem_mark=node.start_mark)
        if not node.tag.startswith("tag:yaml.org,2002:") or "/" in node.tag:
            raise yaml.MarkedYAMLError(problem=f"the tag {node.tag} is not allowed", problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            values: dict[str, _Node] = {}
            for key_node, value_node in node.value:
                part = str(loader.construct_object(key_node, deep=True))
                full = f"{key}.{part}" if key else part
                if part in values:
                    again = f" and line {key_node.start_mark.line + 1}" if lines else ""
                    problems.append(f"{full}: given twice ({values[part].source}{again})")
                values[part] = build(value_node, full, (*above, node))
            return _Node(values, source=source)
        if isinstance(node, yaml.SequenceNode):
            return _Node([build(item, key, (*above, node)) for item in node.value], source=source)
        return _Node(loader.construct_object(node), node.value, source)

    try:
        root = loader.get_single_node()
        return _Node({}, source=name) if root is None else build(root, "", ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if lines and mark else name
        problems.append(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}")
    except ValueError as error:
        problems.append(f"{name}: not valid YAML: {error}")
    finally:
        loader.dispose()
    return None


def _file(path: Path, problems: list[str]) -> _Node:
    """The nodes of one YAML file; an empty mapping after a problem."""
    text = _text(path, "*.yaml", problems)
    node = _read(text, str(path), problems) if text is not None else None
    if node is None:
        return _Node({})
    if not isinstance(node.value, dict):
        problems.append(f"{path}: should hold `key: value` lines, got {_shorten(_plain(node))}")
        return _Node({})
    return node


def _files(path: Path, problems: list[str]) -> list[_Node]:
    """The file, after the one that it names as its base."""
    node = _file(path, problems)
    base = node.value.pop("base", None)
    if base is None:
        return [node]
    if not isinstance(base.value, str):
        problems.append(f"base: should be the path of one YAML file, got {_shorten(_plain(base))} ({base.source})")
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


def _expand(overrides: Iterable[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    """Overrides with `@file` replaced by its lines; yields (key=value, source)."""
    for item in overrides:
        if item.startswith("@"):
            text = _text(Path(item[1:]), "*.txt", problems) or ""
            lines = [(line.strip(), f"{item}:{number}") for number, line in enumerate(text.splitlines(), 1)]
            written = [(line, source) for line, source in lines if line and not line.startswith("#")]
        else:
            written = [(item, item)]
        for line, source in written:
            if _KEY_VALUE.match(line):
                yield line, source
            else:
                problems.append(f"{line}: an override is written key=value, without dashes or spaces ({source})")


_KEY_VALUE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*\s*=")


def _override(value: str, source: str, problems: list[str]) -> _Node:
    """The value of an override: YAML where it is, otherwise the text itself (`*.mp4`)."""
    found: list[str] = []
    node = _read(value, source, found, lines=False)
    if node is None and not value.startswith(("[", "{", '"', "'")):
        return _Node(value, value, source)
    problems += found
    if node is None or not value:
        return _Node(None, value, source)
    return node if node.text is not None else _Node(node.value, value, source)


# --- merging and checking -------------------------------------------------------------------------------------------


def _defaults(cls: type[Section]) -> _Node:
    """The defaults of a class, so that a section which is given in part keeps the rest of its owner's default."""
    fields = {name: field for name, field in cls.model_fields.items() if not field.is_required()}
    return _Node({name: _given(field.get_default(call_default_factory=True)) for name, field in fields.items()})


def _given(value: Any) -> _Node:
    if isinstance(value, Section):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    return _Node({key: _given(item) for key, item in value.items()} if isinstance(value, dict) else value)


def _merge(cls: type[Section] | None, old: _Node, new: _Node) -> _Node:
    """The new value, or a union of both when they are the same section."""
    if cls is None or not isinstance(old.value, dict) or not isinstance(new.value, dict):
        return new
    both = dict(old.value)
    for key, node in new.value.items():
        both[key] = _merge(_section_of(cls.model_fields.get(key)), both.get(key, _Node(None)), node)
    return _Node(both, source=new.source)


def _assign(cls: type[Section] | None, old: _Node, keys: Sequence[str], new: _Node) -> _Node:
    """The tree with one value changed at a dotted key."""
    if not keys:
        return _merge(cls, old, new)
    inside = old.value if isinstance(old.value, dict) else {}
    child = _section_of(cls.model_fields.get(keys[0])) if cls else None
    below = _assign(child, inside.get(keys[0], _Node(None)), keys[1:], new)
    return _Node({**inside, keys[0]: below}, source=new.source)


def _plain(node: Any) -> Any:
    value = node.value if isinstance(node, _Node) else node
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _take_literally(tree: _Node, errors: Iterable[ErrorDetails]) -> bool:
    """Where text was expected and `2024` or `true` was written, put the text back; True when anything changed."""
    changed = False
    for error in errors:
        _, node, (parent, key) = _locate(tree, error)
        wants_text = error["type"] in {"string_type", "path_type", "literal_error"}
        if wants_text and node is not None and node.text is not None and node.text != node.value:
            parent[key] = _Node(node.text, node.text, node.source)
            changed = True
    return changed


def _locate(tree: _Node, error: ErrorDetails) -> tuple[str, _Node | None, tuple[Any, Any]]:
    """The key of an error as users write it, the node there if one was given, and (container, index) that hold it."""
    key = ""
    node: Any = tree
    place: tuple[Any, Any] = (None, None)
    for part in error["loc"]:
        inside = node.value if isinstance(node, _Node) else node
        here = isinstance(part, int) and isinstance(inside, list | tuple) and part < len(inside)
        here = here or (isinstance(inside, dict) and part in inside)
        if here:
            node, place = inside[part], (inside, part)
        elif error["type"] != "missing" or part != error["loc"][-1] or not isinstance(inside, dict):
            continue  # pydantic's name for a member of a union, which nobody wrote
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
        if not here:
            return key, None, (None, None)
    return key, node if isinstance(node, _Node) else None, place


def _truths(cls: type[Section], tree: _Node, prefix: str = "") -> Iterator[str]:
    """Problems of the kind `lr: true`, which pydantic would read as 1.0."""
    for name, node in tree.value.items():
        if (field := cls.model_fields.get(name)) is None:
            continue
        section = _section_of(field)
        allowed = set(_atoms(field.annotation))
        items = node.value if isinstance(node.value, list) else [node]
        if section is not None and isinstance(node.value, dict):
            yield from _truths(section, node, f"{prefix}{name}.")
        elif allowed & {int, float} and bool not in allowed and any(isinstance(_plain(item), bool) for item in items):
            yield f"{prefix}{name}: should be a number, got {_shorten(_plain(node))} ({node.source})"


def _problems(cls: type[Section], tree: _Node, error: ValidationError) -> list[str]:
    """One line for each error of pydantic, in words for the person who wrote the file."""
    lines: dict[str, None] = {}  # an ordered set: the members of a union repeat themselves
    for item in error.errors():
        key, node, _ = _locate(tree, item)
        source = f" ({node.source})" if node and node.source != key else ""
        if item["type"] == "missing" and node is not None:
            line = f"{key}: too few values, got {_shorten(_plain(node))}{source}"
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
            line = f"{key}: {message}, got {_shorten(item['input'])}{source}"
        lines[line] = None
    return list(lines)


def _nearest(cls: type[Section], key: str) -> str:
    """What the writer of an unknown key may have meant."""
    *parents, leaf = key.split(".")
    owner: type[Section] | None = cls
    for name in parents:
        owner = _section_of(owner.model_fields.get(name)) if owner else None
    prefix = ".".join(parents) + "." if parents else ""
    siblings = [prefix + name for name in owner.model_fields] if owner else []
    everywhere = [full for full, _, _ in _leaves(cls)]
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.7)
    near = near or [full for full in everywhere if full.split(".")[-1] == leaf][:3]
    near = near or difflib.get_close_matches(key, siblings + everywhere, n=1, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"valid here: {', '.join(siblings or everywhere)}"


# --- fields ---------------------------------------------------------------------------------------------------------


def _section_of(field: FieldInfo | None) -> type[Section] | None:
    """The one section class that a field holds (perhaps or None), else None."""
    kinds = [kind for kind in _members(field.annotation) if kind is not type(None)] if field else []
    only = kinds[0] if len(kinds) == 1 else None
    return only if isinstance(only, type) and issubclass(only, Section) else None


def _members(annotation: Any) -> list[Any]:
    return list(get_args(annotation)) if get_origin(annotation) in {Union, types.UnionType} else [annotation]


def _atoms(annotation: Any) -> Iterator[Any]:
    """The plain types inside an annotation."""
    arguments = get_args(annotation)
    if not arguments or get_origin(annotation) is Literal:
        yield annotation
    for argument in arguments if get_origin(annotation) is not Literal else ():
        yield from _atoms(argument)


def _leaves(cls: type[Section], owner: Any = None, prefix: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    """Dotted key, field and default of every value; what the owner of a section sets goes before its own default."""
    for name, field in cls.model_fields.items():
        default = field.get_default(call_default_factory=True) if owner is None else getattr(owner, name)
        section = _section_of(field)
        if section is None:
            yield prefix + name, field, default
        else:
            yield from _leaves(section, default if isinstance(default, Section) else None, f"{prefix}{name}.")


def _type_text(field: FieldInfo) -> str:
    signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
    bounds = [f"{sign} {getattr(meta, name)}" for meta in field.metadata for name, sign in signs if hasattr(meta, name)]
    return " ".join([_annotation_text(field.annotation), ", ".join(bounds)]).strip()


def _annotation_text(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin in {Union, types.UnionType}:
        return " | ".join(_annotation_text(argument) for argument in arguments)
    if origin in {tuple, list}:
        return f"[{', '.join('...' if argument is ... else _annotation_text(argument) for argument in arguments)}]"
    if origin is not None and hasattr(annotation, "__metadata__"):
        return _annotation_text(arguments[0])
    if origin is dict:
        return f"{{{_annotation_text(arguments[0])}: {_annotation_text(arguments[1])}}}"
    names = {type(None): "null", Path: "path", str: "text", ...: "..."}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default_text(field: FieldInfo, default: Any) -> str:
    if default is PydanticUndefined:
        return "(required)"
    if isinstance(default, Path | str):
        return str(default) or '""'
    value = TypeAdapter[Any](field.annotation or object).dump_python(default, mode="json")
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


# --- the command line -----------------------------------------------------------------------------------------------


def _arguments(args: Sequence[str]) -> tuple[str | None, list[str], bool]:
    """Split a command line into the YAML path, the overrides and the wish to print."""
    path: str | None = None
    overrides, problems = [], []
    for item in args:
        if item == "--print":
            continue
        if item.startswith("@") or _KEY_VALUE.match(item):
            overrides.append(item)
        elif item.startswith("-"):
            problems.append(f"{item}: no such option; overrides are written key=value, without dashes")
        elif path is None:
            path = item
        else:
            problems.append(f"{item}: one YAML file is enough ({path} came first); the rest are key=value or @file")
    if problems:
        raise ConfigError(problems)
    return path, overrides, "--print" in args


def _usage(cls: type[Section]) -> str:
    width = shutil.get_terminal_size((120, 40)).columns
    usage = f"usage: {program()} [CONFIG.yaml] [@OVERRIDES.txt ...] [KEY=VALUE ...] [--print | --help]"
    return f"{usage}\n\n{(cls.__doc__ or '').strip()}\n\n{describe(cls, width)}"


def _exit(stream: Any, text: str, code: int) -> NoReturn:
    stream.write(text)
    stream.flush()
    raise SystemExit(code)


def _shorten(value: Any) -> str:
    text = repr(str(value)) if isinstance(value, Path) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
