"""The worker process seen from its parent: started, asked, and removed with everything it left behind."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from spikeport.core.errors import SpikeportError
from spikeport.core.progress import Progress, silent

#: Seconds until a fresh worker must answer: importing Lava takes half a second, a cold disk much longer.
START_LIMIT = 120.0
#: Seconds in which a worker may end by itself before it is killed.
PATIENCE = 2.0
SHARED_MEMORY = Path("/dev/shm")
REMEDY = "simulate again, or use the fixed engine"
#: Longest folder for temporary files in which multiprocessing's sockets keep within a socket's path, 107 characters.
FOLDER_LENGTH = 50
#: One thread each: dozens of Lava's processes share the cores.
SINGLE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)


class Worker:
    """One Lava process with its children, in a session of their own; not thread-safe.

    It speaks JSON lines over a socket pair, so that nothing Lava prints can disturb them. Its parent's death
    closes the socket, which ends it. Every shared memory object it creates begins with ``token``.

    Attributes:
        python: its interpreter.
        folder: a temporary folder for jobs, removed with the worker.
        versions: "python", "lava-nc" and "numpy" of its environment.
    """

    def __init__(self, python: Path) -> None:
        """Starts a worker in the environment of ``python``. Raises SpikeportError where it does not come up."""
        self.python = python
        self.owner = os.getpid()
        self.discarded = False
        # Seven random characters: what multiprocessing's names leave room for.
        self.token = f"sp{secrets.token_hex(4)[:7]}"
        self.folder = _folder()
        self.received = b""
        self.channel, theirs = socket.socketpair()
        log = (self.folder / "log").open("wb")
        try:
            self.process = subprocess.Popen(
                [str(python), "-E", "-s", "-m", "worker", str(theirs.fileno()), self.token, str(self.folder)],
                cwd=Path(__file__).parent,
                # multiprocessing's own folders go where they are removed with ours.
                env=os.environ | SINGLE_THREAD | {"TMPDIR": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            self.channel.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise SpikeportError(f"cannot start {python} ({error}); run `spikeport lava setup`") from None
        finally:
            log.close()
            theirs.close()
        self.versions: dict[str, str] = self._until("ready", START_LIMIT, silent)

    @property
    def alive(self) -> bool:
        """Whether this process may still send it a job."""
        if self.discarded or self.owner != os.getpid():
            return False
        # WNOWAIT leaves a dead worker unreaped: its number stays taken until its group is killed.
        with suppress(ChildProcessError):  # somebody else has reaped it
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        return False

    def run(self, job: dict[str, Any], limit: float, progress: Progress) -> dict[str, Any]:
        """Has one job done within ``limit`` seconds.

        Raises:
            SpikeportError: Lava failed, the worker died, or the time is over. The worker is discarded then.
        """
        try:
            with suppress(OSError):  # a dead worker is reported by the answer that does not come
                self.channel.settimeout(limit)
                self.channel.sendall(json.dumps(job).encode() + b"\n")
            answer: dict[str, Any] = self._until("finished", limit, progress)
        except BaseException:
            self.discard()
            raise
        return answer

    def discard(self) -> None:
        """Kills the worker and all its processes, and removes their shared memory and files."""
        if self.discarded or self.owner != os.getpid():
            return
        self.discarded = True
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)  # the worker ends and cleans up, even if this process is killed now
        self.channel.close()
        self._wait(PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._wait(10)
        for pattern in (f"{self.token}*", f"sem.{self.token}*"):
            for left in SHARED_MEMORY.glob(pattern):
                left.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self, seconds: float) -> None:
        """Until no process of the worker is left, so many seconds at most."""
        deadline = time.monotonic() + seconds
        while session_members(self.process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _until(self, wanted: str, limit: float, progress: Progress) -> Any:
        """Reads messages until ``wanted``; passes progress on; discards the worker on every other end."""
        started = time.monotonic()
        try:
            while True:
                message = self._message(started + limit)
                if message is None:
                    what = f"the Lava worker died after {time.monotonic() - started:.1f} s"
                    break
                if "error" in message:
                    raise SpikeportError(f"Lava failed: {message['error']}; {REMEDY}")
                if wanted in message:
                    return message[wanted]
                progress(*message["progress"])
        except TimeoutError:
            what = f"Lava did not finish within {limit:g} s"
        except BaseException:
            self.discard()
            raise
        log = (self.folder / "log").read_text(errors="replace")
        self.discard()
        last = [line.strip() for line in log.splitlines() if line.strip()][-3:]
        told = f" (its last words: {' | '.join(last)})" if last else ""
        raise SpikeportError(f"{what}{told}; {REMEDY}")

    def _message(self, deadline: float) -> dict[str, Any] | None:
        """The next line, or None where the worker closed its end. Raises TimeoutError."""
        while b"\n" not in self.received:
            self.channel.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self.channel.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                return None
            self.received += data
        line, _, self.received = self.received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def _folder() -> Path:
    short = len(tempfile.gettempdir()) <= FOLDER_LENGTH
    return Path(tempfile.mkdtemp(prefix="spikeport-lava-", dir=None if short else "/tmp"))


def session_members(session: int) -> list[int]:
    """Living processes of a session (zombies apart: in a container nobody may collect them)."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # After the name in parentheses: state, parent, group, session.
                state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(of) == session and state not in "ZX":
                    members.append(int(entry.name))
    return members
