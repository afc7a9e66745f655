"""The types of a dataclass's values, checked: settings come from files that anyone may have edited."""

import math
import types
from dataclasses import fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from spikeport.core.errors import SpikeportError


def check_types(settings: Any) -> None:
    """Raises SpikeportError, naming the field, where a value is not of its annotated type or not finite.

    Lists become tuples, paths text, and NumPy's numbers Python's. Understands str, int, float (an int will do), tuples
    and unions of these, and classes; of a dictionary it checks that it is one.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        value = getattr(settings, field.name)
        plain = tuple(value) if isinstance(value, list) else value  # what a tuple becomes in a file
        plain = str(plain) if isinstance(plain, Path) else plain.item() if isinstance(plain, np.generic) else plain
        if plain is not value:
            value = plain
            object.__setattr__(settings, field.name, value)
        if not _is(value, hints[field.name]):
            raise SpikeportError(f"{field.name} is {value!r}; expected {_label(hints[field.name])}")


def _is(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (types.UnionType, Union):
        return any(_is(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, get_origin(hint) or hint)


def finite(value: float) -> bool:
    """Whether a number is one that a float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _label(hint: Any) -> str:
    if get_origin(hint) in (types.UnionType, Union):
        return " or ".join(_label(option) for option in get_args(hint) if option is not types.NoneType)
    if get_origin(hint) is tuple:
        return f"a list of {_label(get_args(hint)[0])}"
    names = {int: "a whole number", float: "a finite number", str: "text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
