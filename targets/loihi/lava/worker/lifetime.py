"""What makes sure that no process and no shared memory of this worker outlives it or its parent."""

import ctypes
import json
import os
import queue
import resource
import shutil
import signal
import threading
import time
from contextlib import suppress
from multiprocessing import process, shared_memory
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1


class Failure(Exception):
    """A failure whose text tells the user everything."""


def name_shared_objects(token: str) -> None:
    """Lets the names of all shared memory and semaphores begin with ``token``, so that the parent may remove them.

    multiprocessing offers no public way to choose them.
    """
    shared_memory._SHM_NAME_PREFIX = f"/{token}"  # type: ignore[attr-defined]
    process.current_process()._config["semprefix"] = f"/{token}"  # type: ignore[attr-defined]


def raise_file_limit() -> None:
    """Lava opens about ten files a process in this one; 1024, the usual soft limit, ends at 100 processes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bind_children(descriptor: int) -> None:
    """Every forked child dies with this process (Lava's own would stay) and lets go of the parent's socket."""
    libc = ctypes.CDLL(None, use_errno=True)
    worker = os.getpid()

    def in_child() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != worker:  # it died in between
            os._exit(1)
        os.close(descriptor)

    os.register_at_fork(after_in_child=in_child)


def remove(folder: Path) -> None:
    """Removes ``folder``, which a child may write to until it is dead."""
    with suppress(Exception):  # the main thread may be starting children just now
        for child in process.active_children():
            child.kill()
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.01)


def listen(descriptor: int, jobs: "queue.SimpleQueue[dict[str, Any]]", folder: Path) -> None:
    """Starts a thread that queues the parent's jobs; when the parent is gone it removes ``folder`` and ends all.

    The children die with this process; then multiprocessing's resource tracker, the last to hold the pipe it
    listens to, removes their shared memory and ends.
    """

    def loop() -> None:
        received = b""
        try:
            # Plain reads: a lock of a buffered reader, held here while Lava forks, would stay locked in the children.
            while data := os.read(descriptor, 65536):
                *lines, received = (received + data).split(b"\n")
                for line in lines:
                    jobs.put(json.loads(line))
        finally:  # also when the parent died with messages unread, which is an error and no end of file
            try:
                remove(folder)
            finally:
                os._exit(0)

    threading.Thread(target=loop, daemon=True).start()
