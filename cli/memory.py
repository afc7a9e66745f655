"""How the C library handles memory that was freed."""

import ctypes
import sys

#: Codes of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed for the next tensor; other C libraries stay as they are.

    By default every large tensor is new pages from the kernel, which are zeroed as they are first touched: nearly half
    of a forward pass on a CPU.
    """
    if sys.platform != "linux":  # Windows has no library of the process to look in
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
