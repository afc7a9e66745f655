"""Serves jobs, one after the other, until the parent goes away: ``python -m worker SOCKET TOKEN FOLDER``.

Messages are JSON lines. In: {"folder", "rasters", "convolution"}. Out: {"ready": versions}; then for each job any
number of {"progress": [done, total]} and one {"finished": details} or {"error": text}. An error ends the worker:
what Lava leaves behind after a failure cannot be used again.
"""

import json
import os
import queue
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import lifetime, shims


def main() -> None:
    descriptor, token, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    lifetime.name_shared_objects(token)
    lifetime.raise_file_limit()
    lifetime.bind_children(descriptor)

    def send(message: dict[str, Any]) -> None:
        os.write(descriptor, json.dumps(message).encode() + b"\n")

    try:
        # First Lava (it sets how multiprocessing starts children), then the thread that listens.
        shims.import_lava()
        from .simulation import simulate

        lifetime.listen(descriptor, jobs, folder)
        versions = {name: version(name) for name in ("lava-nc", "numpy")}
        send({"ready": {"python": sys.version.split()[0], **versions}})
        while True:
            job = jobs.get()
            details = simulate(
                Path(job["folder"]),
                job["convolution"],
                job["rasters"],
                lambda done, total: send({"progress": [done, total]}),
            )
            send({"finished": details})
    except BaseException as error:
        traceback.print_exc()
        try:
            told = str(error) if isinstance(error, lifetime.Failure) else f"{type(error).__name__}: {error}"
            send({"error": told})
        except OSError:  # the parent is gone: nobody else would
            lifetime.remove(folder)
        finally:
            # Neither clean-up nor atexit: after a failure both wait for ever. The parent collects the rest.
            os._exit(1)


if __name__ == "__main__":
    main()
