"""Memory settings are glibc's; elsewhere the command starts without them."""

import ctypes
import sys

import pytest

from spikeport.memory import keep_freed_memory


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    def refuse(name):
        raise TypeError("expected a path")  # what Windows says to CDLL(None)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    monkeypatch.setattr(sys, "platform", platform)
    keep_freed_memory()
