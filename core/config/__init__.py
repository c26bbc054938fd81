"""Configuration: frozen, checked sections made from a YAML file and overrides, and turned back into YAML."""

from core.config.command import describe, parse, program
from core.config.resolve import dump, load
from core.config.section import ConfigError, Section, flatten

__all__ = ["ConfigError", "Section", "describe", "dump", "flatten", "load", "parse", "program"]
