"""Repair: what becomes of a running operation whose runner is gone.

Owns the decision by the operation's mark; see running.py for claims.  Guarantees: whoever meets such an operation (a
wait, a worker, the frame that an exception leaves) completes it, makes it READY again or cancels it, exactly once.
"""

from __future__ import annotations

from _thread import get_ident
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from .admission import Admission
from .atomic import Step, commit, locked, setitem, unlocked
from .claims import Job, here_and_now
from .errors import Cancelled, DeadlockError
from .lifecycle import living
from .operation import DONE, OK, READY, RUNNING, Fate, Kind, Operation, Root
from .tracker import retire

ASYNC = Kind.ASYNC


class Repair(Admission):
    """The tracker's way out of a vanished runner, and out of a section."""

    def _apart(self, f: Callable[..., Any], *args: Any) -> Any:
        """``f(*args)`` with this thread's locks given away: for a finalizer or handler inside a section that waits.

        The section's plan is then out of date as soon as anybody else plans; its ticket tells.
        """
        if self._T._is_owned():
            return unlocked(self._T, self._apart, f, *args)
        if self._P._is_owned():
            self._promote_all()  # who comes next has to find the kernels below admitted
            return unlocked(self._P, f, *args)
        return f(*args)

    def _gone(self, mine: list[Job | None]) -> None:
        """Best effort: what a third interrupt leaves is repaired by the next who looks."""
        try:
            self._abandoned(mine)
        except BaseException:
            self._abandoned(mine)
            raise

    def _runner_gone(self, op: Operation) -> None:
        locked(self._T, self._repair, op)

    def _promote_all(self) -> None:
        """P held.  Admit the kernels that run inside pushes of this thread, in whatever engine."""
        for e in living():
            if e._inlining is not None:
                e._promote()

    def _abandoned(self, mine: list[Job | None]) -> None:
        """An exception leaves a runner: [what it had claimed, what it had before and perhaps not retired].

        May itself be cut, and then be repeated.
        """
        job, old = mine
        if old is not None and old[0].state is DONE:
            retire(old[0])
        mine[1] = None
        if job is not None and job[0].state is RUNNING and job[0].claim is job[1]:
            locked(self._T, self._repair, job[0])
        mine[0] = None

    # ------------------------------------------------------------------------------------------------ T is held below
    def _orphan(self, op: Operation) -> bool:
        """RUNNING, and its runner is gone, or is a suspended frame of this very thread outside any function of it."""
        claim = op.claim
        if claim is None:
            return False
        return not claim[1].locked() or (
            claim[2] == get_ident() and op not in here_and_now.stack and (op.kind is not ASYNC or op.mark == 0)
        )

    def _repair(self, op: Operation) -> None:
        """T held.  An operation without a runner."""
        claim = op.claim
        if claim is None or op.state is not RUNNING:
            return
        token, busy = claim[0], claim[1]
        if token is None:
            return
        if op.fate is not None:
            self._finish(op, claim, token, op.fate)
        elif op.mark == 2:
            self._finish(op, claim, token, OK)
        elif op.mark == 0:
            self._unclaim(op, claim, token)
        elif op.kind is ASYNC and busy.locked():
            return  # handed out
        elif busy.locked():
            raise DeadlockError(f"[{op.name}] a finalizer waits for the kernel that it interrupts")
        else:
            why = "lost its event loop, which was closed" if op.kind is ASYNC else "was interrupted"
            self._finish(op, claim, token, Fate(Root(op, Cancelled(f"[{op.name or 'operation'}] {why}"))))

    def _unclaim(self, op: Operation, claim: list[Any], token: object) -> None:
        while not locked(self._T, self._unclaim_locked, op, claim, token):
            pass

    def _unclaim_locked(self, op: Operation, claim: list[Any], token: object) -> bool:
        """RUNNING -> READY: the claimed kernel has not started."""
        t = object()
        self._guard_t[0] = t
        if op.state is not RUNNING or op.claim is not claim or claim[0] is not token:
            return True
        steps: list[Step] = [(setitem, claim, 0, None), (setattr, op, "state", READY)]
        self._place(steps, [op])
        # Wake who watches it: a worker in a wait hears no bell, and is perhaps the only one.
        steps += ((SimpleQueue.put, q, None) for q in op.watch)
        return commit(self._guard_t, t, steps)

    def _worth_repeating(self, op: Operation, claim: list[Any], token: object, e: BaseException) -> bool:
        """Memory ran out: is it to be tried once more?  See limits.py, also for the next."""
        return False

    def _make_room(self, job: Job) -> bool:
        return False
