"""Checked fields of a config.json, and numbers as vLLM's flags take them."""

import re
from typing import Any, NoReturn, TypeVar

from helpers.errors import WorkshopError


class ConfigError(WorkshopError):
    """A config.json (or a name for one) that the arithmetic cannot use."""


Kind = TypeVar("Kind")
UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Reader:
    """Takes checked fields out of a config.json.

    Its methods raise ConfigError, which names the field and `where` it stands.
    """

    def __init__(self, fields: dict[str, Any], where: str):
        self.fields, self.where = fields, where

    def size(self, field: str, default: int | None = None) -> int:
        """A whole number above 0; without a default the field has to be there."""
        value = self.fields.get(field, default)
        value = default if value is None else value
        if value is None:
            raise ConfigError(f"{self.where}: the field {field!r} is missing; the arithmetic needs it.")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ConfigError(f"{self.where}: {field!r} is {value!r}; it must be a positive whole number.")
        return value

    def count(self, field: str, default: int = 0) -> int:
        """A whole number, 0 or more."""
        value = self.fields.get(field)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"{self.where}: {field!r} is {value!r}; it must be a whole number, 0 or more.")
        return value

    def list_of(self, kind: type[Kind], field: str) -> list[Kind]:
        """A list of values of one kind; empty where the field is missing."""
        value = self.fields.get(field) or []
        if not isinstance(value, list) or any(not isinstance(item, kind) for item in value):
            raise ConfigError(f"{self.where}: {field!r} is {value!r}; it must be a list of {kind.__name__} values.")
        return value

    def size_or_none(self, field: str) -> int | None:
        """A whole number above 0; None where the field is missing."""
        return None if self.fields.get(field) is None else self.size(field)

    def fail(self, problem: str) -> NoReturn:
        """Raise ConfigError for what is wrong with the fields together."""
        raise ConfigError(f"{self.where}: {problem}")


def flag_number(flag: str, value: str) -> int:
    """The whole number that a flag of vLLM is given: 8192, 8k or 25.6k (thousands), 8K (1,024s), and so on with m, g, t.

    Raises ConfigError for anything else. Source: human_readable_int in vLLM utils/argparse_utils.py.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt])|(\d+)([KMGT])?", value)
    if not found:
        raise ConfigError(f"{flag} is {value!r}; it must be a whole number, as 8192, 8k or 8K.")
    decimal, thousands, whole, binary = found.groups()
    return int(float(decimal) * UNITS[thousands]) if decimal else int(whole) * UNITS.get(binary, 1)
