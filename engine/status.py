"""What a running process tells of its engines, for `python -m vardag.top`.

Nobody listens unless asked to: `serve`, or VARDAG_TOP=1, opens a socket in a directory that only the user may enter.
Whoever connects is sent one line of JSON.  The thread that answers takes no lock of an engine but, for a moment, the
one that lists pending operations.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError
from .operation import RUNNING
from .site import describe

if TYPE_CHECKING:
    from .core import Engine

SLOWEST = 10  # running operations that are told of
NAMES = 8  # of pending operations


def directory() -> Path:
    """Where the sockets are, one for each process."""
    return Path(tempfile.gettempdir()) / f"vardag-{os.getuid()}"


def described(engine: Engine) -> dict[str, Any]:
    """An engine's queues, lanes and slowest operations, as plain values.  Sync: never blocks on a computation."""
    found, ops = engine.statistics(), engine._pending()
    threads = {t.ident: t.name for t in threading.enumerate()}
    running = []
    for op in ops:
        claim: Any = op.claim if op.state is RUNNING else None
        if claim is not None:
            thread = threads.get(claim[2], "a thread that is gone")
            running.append(
                {"name": op.name, "seconds": monotonic() - claim[3], "thread": thread, "line": describe(op.site)}
            )
    lanes = [
        {"name": lane.name, "ready": len(lane.heap), "workers": lane.workers, "asleep": len(lane.asleep)}
        for lane in list(engine._lanes.values())
    ]
    return {
        "engine": repr(engine),
        "pushed": found.pushed,
        "completed": found.completed,
        "pending": found.pending,
        "bytes": found.bytes,
        "peak_bytes": found.peak_bytes,
        "unseen": found.unseen,
        "held": found.held,
        "lanes": lanes,
        "names": dict(Counter(op.name or "?" for op in ops).most_common(NAMES)),
        "running": sorted(running, key=lambda r: -r["seconds"])[:SLOWEST],
    }


class Server:
    """What `serve` returns; a context manager that stops it.   `path`: the socket."""

    def __init__(self) -> None:
        folder = directory()
        folder.mkdir(mode=0o700, exist_ok=True)
        mode = folder.stat()
        if mode.st_uid != os.getuid() or stat.S_IMODE(mode.st_mode) & 0o077:
            raise ArgumentError(f"[top] {folder} is not this user's alone")
        self.path = folder / f"{os.getpid()}.sock"
        self.path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.path))
        self._socket.listen()
        threading.Thread(target=self._answer, name="vardag-top", daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the socket."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _answer(self) -> None:
        from .lifecycle import living

        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            with connection, suppress(OSError):
                answer = {"pid": os.getpid(), "engines": [described(engine) for engine in living()]}
                connection.sendall(json.dumps(answer).encode() + b"\n")


def serve() -> Server:
    """Let `python -m vardag.top` look into this process.

    Sync: never blocks.   Raises: ArgumentError at the call where there are no Unix sockets, or if others may enter the
    directory.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ArgumentError("[top] this system has no Unix sockets")
    return Server()


def seen_by_environment() -> None:
    """What VARDAG_TOP=1 asks for."""
    if os.environ.get("VARDAG_TOP") == "1":
        import atexit

        atexit.register(serve().stop)


def processes() -> Iterator[int]:
    """Those that can be looked into."""
    for path in sorted(directory().glob("*.sock")):
        if path.stem.isdigit():
            yield int(path.stem)


def ask(pid: int) -> dict[str, Any]:
    """What a process tells.   Raises: OSError if it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(str(directory() / f"{pid}.sock"))
        with connection.makefile("rb") as file:
            return json.loads(file.readline())  # type: ignore[no-any-return]
