"""What lava-nc 0.10 needs on Python 3.11 and newer."""

import dataclasses
from typing import Any
from unittest import mock


def import_lava() -> None:
    """Imports the one module of Lava that Python 3.11 refuses.

    Its dataclasses have instances of dataclasses as defaults, which are unhashable, and 3.11 takes for mutable
    whatever is unhashable. Here they get the hash of a plain object while they are made.
    """

    def hashable(cls: Any = None, /, **options: Any) -> Any:
        if cls is None:
            return lambda cls: hashable(cls, **options)
        made = dataclasses_dataclass(cls, **options)
        if made.__hash__ is None:
            made.__hash__ = object.__hash__
        return made

    dataclasses_dataclass = dataclasses.dataclass
    with mock.patch.object(dataclasses, "dataclass", hashable):
        import lava.magma.compiler.var_model  # noqa: F401
