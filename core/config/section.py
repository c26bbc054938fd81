"""What a configuration is made of: frozen, checked sections, and the fields in them."""

import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


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


def section_of(field: FieldInfo | None) -> type[Section] | None:
    """The one section class that a field holds (perhaps or None), else None."""
    kinds = [kind for kind in members(field.annotation) if kind is not type(None)] if field else []
    only = kinds[0] if len(kinds) == 1 else None
    return only if isinstance(only, type) and issubclass(only, Section) else None


def members(annotation: Any) -> list[Any]:
    """The types that a union is made of; a plain type alone."""
    return list(get_args(annotation)) if get_origin(annotation) in {Union, types.UnionType} else [annotation]


def atoms(annotation: Any) -> Iterator[Any]:
    """The plain types inside an annotation."""
    arguments = get_args(annotation)
    if not arguments or get_origin(annotation) is Literal:
        yield annotation
    for argument in arguments if get_origin(annotation) is not Literal else ():
        yield from atoms(argument)


def leaves(cls: type[Section], owner: Any = None, prefix: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    """Dotted key, field and default of every value; what the owner of a section sets goes before its own default."""
    for name, field in cls.model_fields.items():
        default = field.get_default(call_default_factory=True) if owner is None else getattr(owner, name)
        section = section_of(field)
        if section is None:
            yield prefix + name, field, default
        else:
            yield from leaves(section, default if isinstance(default, Section) else None, f"{prefix}{name}.")
