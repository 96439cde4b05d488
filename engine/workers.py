"""Workers: how they start, go on whatever is thrown into them, and are replaced.

What a worker does is in running.py.
"""

from __future__ import annotations

import threading
from _thread import start_new_thread
from contextlib import suppress
from typing import Any

from .atomic import locked
from .claims import Job, here_and_now, starting
from .ready import Lane
from .running import Runner


class Workers(Runner):
    """The runner's threads."""

    def __init__(self) -> None:
        super().__init__()
        self._life: Any = threading.RLock()  # held by the thread that starts a lane's workers, and by nobody else

    def _queued(self) -> None:
        """After a push: see that somebody will run it."""
        if self._started is not self._lanes:
            self._start_workers()
        if self._serial:
            self._run_ready()

    def _start_workers(self) -> None:
        """Takes no lock, since a frame below may hold any, and may be cut or repeated."""
        if self._fuzz is not None:
            self._fuzz.pushed(self)
            return
        lanes = self._lanes
        if self._closed and not self._live and not self._inbox:
            return  # a push that another thread's `stop` has drained
        for lane in lanes.values():
            if lane.workers and not lane.started:
                # Thread.start() does not survive an interrupt, and holds a lock of `threading` that a finalizer in
                # there could want; so a thread of its own does it, where no signal handler runs.
                start_new_thread(self._start_lane, (lane,))
                lane.started = True
        self._started = lanes  # and not True: a lane added meanwhile made another dictionary, so it is not forgotten

    def _start_lane(self, lane: Lane, gone: threading.Thread | None = None) -> None:
        here_and_now.worker = self  # a finalizer in here may wait for what only a worker runs
        if not locked(self._life, self._start_lane_locked, lane, gone):
            self._work(lane)  # a lane has one worker at least, and no other thread can be started

    def _start_lane_locked(self, lane: Lane, gone: threading.Thread | None) -> bool:
        lane.threads[:] = [t for t in lane.threads if t is not gone and t.is_alive()]
        with suppress(RuntimeError):  # too many threads; 3.12+: the process is ending
            self._start_threads(lane)
        lane.threads[:] = [t for t in lane.threads if t.ident is not None]  # one that died since is replaced
        lane.up.put(None)
        return bool(lane.threads)

    def _start_threads(self, lane: Lane) -> None:
        while len(lane.threads) < lane.workers:
            name = f"vardag-{lane.name}-{len(lane.threads)}"
            thread = threading.Thread(target=self._work, args=(lane,), daemon=True, name=name)
            starting[:] = [(t, e) for t, e in starting if t.ident is None or t.is_alive()]
            starting.append((thread, self))
            lane.threads.append(thread)
            thread.start()

    def _work(self, lane: Lane) -> None:
        """A worker's life."""
        here_and_now.worker = self
        me = threading.current_thread()
        with suppress(ValueError):
            starting.remove((me, self))
        mine: list[Job | None] = [None, None]
        try:
            self._serve_on(lane, mine)
        except BaseException:  # a second exception thrown into it, while it dealt with the first: another takes over
            start_new_thread(self._start_lane, (lane, me))
            start_new_thread(self._abandoned, (mine,))

    def _serve_on(self, lane: Lane, mine: list[Job | None]) -> None:
        """`_serve`, again and again if something is thrown into it."""
        bell = lane.bell
        while not lane.stopping and lane.bell is bell:  # another one: a child forked by an operation of this worker
            self._serve_safely(lane, mine)
        bell.put(None)  # the next sleeper stops too

    def _serve_safely(self, lane: Lane, mine: list[Job | None]) -> None:
        try:
            self._abandoned(mine)  # what a second exception left
            self._serve_once(lane, True, mine)
        except BaseException:
            return
