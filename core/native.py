"""Shared libraries of C functions that are built with the package where there is a compiler."""

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def native_library(module: str) -> ctypes.CDLL | None:
    """The extension ``_cpu`` beside the file of a module, or None where it was not built. Worth a cache."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(module).with_name("_cpu" + suffix)
        if path.exists():
            return ctypes.CDLL(str(path))
    return None
