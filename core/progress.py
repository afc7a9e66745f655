"""Progress as a plain call, so that no layer below the command line draws anything."""

from collections.abc import Callable

#: Called with (done, total).
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Shows nothing."""
