"""Shared libraries of C functions that are built with the package where there is a compiler."""

import ctypes
import functools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


@functools.cache
def native_library(folder: Path) -> ctypes.CDLL | None:
    """The extension ``_cpu`` in ``folder``, or None where it was not built."""
    for suffix in EXTENSION_SUFFIXES:
        path = folder / ("_cpu" + suffix)
        if path.exists():
            return ctypes.CDLL(str(path))
    return None
