"""Variables: what operations read, write and update.

Owns the class and nothing else.  Every field is guarded by the engine's lock P (the order of pushes) and changed only
in a commit; reading a single field without the lock is allowed and gives its value at some moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .core import Engine
    from .operation import Operation


class Variable:
    """A name for some state; operations on it are ordered as pushed.

    Make one with ``engine.new_variable()``, or ``Variable(engine)`` which is the same.

    Attributes
    ----------
    version : int
        The number of writes and updates *pushed* so far (program order, not completion order).

    Examples
    --------
    >>> from vardag.engine import Engine
    >>> with Engine(workers=1) as e:
    ...     v = e.new_variable("v")
    ...     _ = e.push(lambda: None, writes=[v])
    ...     e.wait_for_var(v)
    ...     v.version
    1
    """

    __slots__ = ("__weakref__", "deleted", "engine", "name", "readers", "version", "writer")

    # P.  The engine; None once deleted, so that one test finds both a foreign and a deleted variable.
    engine: Engine | None
    # P.  The last pushed writer or updater; None if nothing wrote yet, or if that one ran within its push and
    # succeeded. So None means: whatever was pushed before is done, and the variable is not poisoned.
    writer: Operation | None
    # P.  Operations that read, pushed since `writer`.  () or a list; finished ones are pruned now and then.
    readers: Sequence[Operation]
    version: int
    deleted: bool
    name: str

    def __init__(self, engine: Engine, name: str = "") -> None:
        self.engine = engine
        self.writer = None
        self.readers = ()
        self.version = 0
        self.deleted = False
        self.name = name

    def __repr__(self) -> str:
        state = "deleted" if self.deleted else f"version {self.version}"
        return f"<Variable {self.name or hex(id(self))}, {state}>"
