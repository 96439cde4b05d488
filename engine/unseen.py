"""Errors that nobody has seen: `waitall` raises them, the end of an engine logs them.

Guarantee: each is raised by one `waitall`, or logged, or still there; an interrupt in the middle loses none.
                                                            [test_guards: test_an_interrupted_waitall_loses_no_error]
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from .atomic import commit, locked
from .errors import EngineErrors
from .operation import Root, fresh_error
from .repair import Repair


class Unseen(Repair):
    """The roots in `_unseen`."""

    def _raise_unseen(self, waiter: Any) -> None:
        """They stay where they are until the group is built; an exception from outside leaves or restores them."""
        taken: list[Any] = []  # set by the commit that takes them
        group: EngineErrors | None = None
        try:
            group = self._group_of_unseen(waiter, taken)
            if group is not None:
                raise group
        except BaseException as e:
            if taken and e is not group:
                locked(self._T, self._unsee, *taken)
            raise
        finally:
            group = None  # else its traceback would hold this frame, and this frame the group

    def _group_of_unseen(self, waiter: Any, taken: list[Any]) -> EngineErrors | None:
        while True:
            roots, more = self._look_unseen()
            fresh = [root for root in roots if not root.seen]
            fresh.sort(key=attrgetter("seq"))
            errors = [fresh_error(root, 0, waiter, seen=False) for root in fresh]
            count = len(errors) + more
            text = f"{count} operation{'s' if count > 1 else ''} failed"
            group = EngineErrors(text + (f", {more} of them not kept" if more else ""), errors) if errors else None
            if locked(self._T, self._take_unseen, roots, fresh, more, taken):
                return group  # else another `waitall` was faster

    def _look_unseen(self) -> tuple[list[Root], int]:
        more = self._unseen_more
        return self._unseen.copy(), more

    def _take_unseen(self, roots: list[Root], fresh: Sequence[Root], more: int, taken: list[Any]) -> bool:
        """T held.  Take off `roots`, of which `fresh` are about to be raised.  False: they are no longer all there."""
        t = object()
        self._guard_t[0] = t
        if self._unseen[: len(roots)] != roots or any(root.seen for root in fresh):
            return False
        steps: list[Any] = [(list.remove, self._unseen, root) for root in roots]  # each is the first
        steps += [(setattr, root, "seen", True) for root in fresh]
        steps += ((setattr, self, "_unseen_more", self._unseen_more - more), (list.extend, taken, (fresh, more)))
        return commit(self._guard_t, t, steps)

    def _unsee(self, roots: list[Root], more: int) -> None:
        """T held.  They were taken, and are not raised after all."""
        t = object()
        self._guard_t[0] = t
        steps: list[Any] = [(setattr, root, "seen", False) for root in roots]
        steps += ((list.extend, self._unseen, roots), (setattr, self, "_unseen_more", self._unseen_more + more))
        if not commit(self._guard_t, t, steps):
            self._unsee(roots, more)

    def _add_unseen(self, root: Root) -> None:
        self._unseen.append(root)
