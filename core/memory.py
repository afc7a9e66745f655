"""What the C library does with the memory that tensors free."""

import ctypes
import os
import sys

#: Parameters of mallopt (glibc, malloc.h), the most that it takes, and the most that glibc before 2.35 takes of a
#: threshold for mmap (half of HEAP_MAX_SIZE).
TRIM_THRESHOLD, MMAP_THRESHOLD, MOST, MOST_BEFORE_2_35 = -1, -3, 2**31 - 1, 2**25


def keep_freed_memory() -> None:
    """Has glibc keep up to 2 GiB of freed memory for the next tensors, until the process ends.

    By default it may hand large blocks back (what else lies in the heap decides), and the system clears every page anew
    when the next step asks for them: up to 1.6 million page faults in an epoch of 2,400 images of SNN-SqueezeNet-P
    (batch 64, T = 4, bfloat16), a sixth of its time on one thread, where 85,000 are enough. Other C libraries, and
    settings of one's own in the environment, stay as they are.
    """
    if sys.platform == "win32" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Both: either alone switches off glibc's own adaptation of the other.
        if not mallopt(MMAP_THRESHOLD, MOST):
            mallopt(MMAP_THRESHOLD, MOST_BEFORE_2_35)
        mallopt(TRIM_THRESHOLD, MOST)
