"""Looking at what the modules of a network give while it runs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

Named = Iterable[tuple[str, nn.Module]]


def watch(modules: Named, see: Callable[[str, Any], None]) -> list[RemovableHandle]:
    """Gives ``see`` the name and the output of every one of ``modules`` whenever it runs; one hook for each."""
    return [m.register_forward_hook(lambda _, __, output, name=name: see(name, output)) for name, m in modules]


@contextmanager
def watched(modules: Named, see: Callable[[str, Any], None]) -> Iterator[None]:
    """``watch``, for a while."""
    hooks = watch(modules, see)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
