"""A configuration at the command line: `CONFIG.yaml @FILE KEY=VALUE --print --help`."""

import itertools
import shutil
import sys
import textwrap
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from core.config.resolve import dump, load
from core.config.section import ConfigError, Section, T, leaves
from core.config.source import KEY_VALUE, Dumper


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


def program() -> str:
    """The command that runs here, without its arguments: `python -m projects.x.train`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {Path(sys.argv[0]).name}"


def describe(cls: type[Section], width: int = 120) -> str:
    """A table of key, type, default and description, wrapped at `width` columns."""
    rows = [
        (key, _type_text(field), _default_text(field, default), field.description or "")
        for key, field, default in leaves(cls)
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
    text: str = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _arguments(args: Sequence[str]) -> tuple[str | None, list[str], bool]:
    """Split a command line into the YAML path, the overrides and the wish to print."""
    path: str | None = None
    overrides, problems = [], []
    for item in args:
        if item == "--print":
            continue
        if item.startswith("@") or KEY_VALUE.match(item):
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
