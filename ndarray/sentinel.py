"""What `engine.check` gives to users' functions instead of arrays' memory, and what it sees there afterwards.

A copy that is to be written begins as a *sentinel*.  Among floats that is a NaN whose payload survives arithmetic.
Other numbers have no such value: theirs are drawn at random, and what was written is compared with what was drawn.
Whoever did not read the old values cannot have come near them, bit by bit, but by chance, and how great that is follows
from the sizes alone: what has less than `CHANCE` is reported.  So it is seen whether

    an element has its old value, or is some small number away from it (`b += x`, `b -= x`, `b ^= x`);
    from about fifty elements on: a bit tends to agree, or to disagree, with some bit of the old value (`b *= 3`,
    `b //= 2`, `b &= x`, `b = -b`, `min(b, x)`, ...).

Not seen are truth values that were read, sums over the old values and the like, and, in integers of few bits, single
elements that were not written.                                                      [tests/engine/test_check.py]
"""

from __future__ import annotations

import math
from itertools import count
from typing import Any
from weakref import ref

import numpy as np

#: as the payload of a NaN it survives arithmetic; the same one in three lengths
NANS = {2: ("u2", 0x7ED1), 4: ("u4", 0x7FDA3C69), 8: ("u8", 0x7FFB478D20000000)}
UNTRUE = 0xA5  # no truth value is this byte
CHANCE = 1e-6  # of a report about a function that has read nothing
SAMPLE = 4096  # elements whose bits are compared
_seeds = count()  # of what is drawn: a program's reports are the same each time


class Copy:
    """Memory that a function is given instead of an array's."""

    def __init__(self, memory: Any, mode: str, apart: bool, twice: bool) -> None:
        self.mode = mode
        self.twice = twice
        self.memory = memory
        self.before = memory.tobytes()
        self.own = memory.copy(order="C") if apart else memory
        self.apart = apart
        self.drawn: Any = None
        if mode == "write" and apart:
            sentinel(self.own)
            self.drawn = self.own.copy()

    def lent(self) -> Any:
        """What the function gets."""
        view = self.own.view()
        if self.mode == "read":
            view.flags.writeable = False
        return view

    def passed(self) -> bool:
        """Was the array's own memory changed, by another way than this?"""
        return bool(self.memory.tobytes() != self.before)

    def changed(self) -> bool:
        """Is it another value than the array's was?"""
        return bool(self.own.tobytes() != self.before)

    def left(self) -> bool:
        """Is something there that was not written, or computed from it?"""
        return left(self.own, self.drawn)

    def store(self) -> None:
        """The array's memory gets its value."""
        self.memory[...] = self.own

    def let_go(self) -> Any:
        """The memory if somebody still refers to it, without a value that one could read by chance."""
        kept, self.own = ref(self.own), None
        memory = kept()
        if memory is not None:
            sentinel(memory)
        return memory


def copies(memories: list[Any], modes: list[str], shared: list[bool]) -> list[Copy] | None:
    """One for each; None: it is memory of another kind.

    What others write too is not copied but compared.  What overlaps another operand, and one of the two is changed, is
    given as it is: the two are one update, whichever of them the function uses.
    """
    if not all(type(memory) is np.ndarray for memory in memories):
        return None
    out = []
    for i, memory in enumerate(memories):
        twice = any(
            j != i and not modes[i] == modes[j] == "read" and _overlap(memory, other)
            for j, other in enumerate(memories)
        )
        out.append(Copy(memory, modes[i], not (twice or shared[i]), twice))
    return out


def _overlap(a: Any, b: Any) -> bool:
    try:
        return bool(np.shares_memory(a, b, max_work=1000))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


# ==================================================================================================== the sentinel
def _floats(memory: Any) -> Any:
    """The memory as floats of a NumPy length; None for what is none."""
    if memory.dtype.kind == "c":
        memory = memory.reshape(-1).view(memory.real.dtype)
    return memory if memory.dtype.kind == "f" and memory.dtype.itemsize in NANS else None


def _unsigned(memory: Any) -> Any:
    """The elements of C-ordered memory as unsigned integers."""
    return memory.reshape(-1).view(f"u{memory.dtype.itemsize}")


def sentinel(memory: Any) -> None:
    """Fill memory, which is C-ordered, with what no function writes by chance."""
    if not memory.size:
        return
    floats = _floats(memory)
    if floats is not None:
        unsigned, bits = NANS[floats.dtype.itemsize]
        floats.view(unsigned)[...] = bits
    elif memory.dtype.kind == "b":
        _unsigned(memory)[...] = UNTRUE
    else:
        numbers = _unsigned(memory)
        top = np.iinfo(numbers.dtype).max
        numbers[...] = np.random.default_rng(next(_seeds)).integers(0, top, numbers.size, numbers.dtype, endpoint=True)


def left(memory: Any, drawn: Any) -> bool:
    """Is some of the sentinel, which was `drawn`, there, or in what was computed from it?"""
    if not memory.size:
        return False
    floats = _floats(memory)
    if floats is not None:
        unsigned, bits = NANS[floats.dtype.itemsize]
        sign = 1 << (8 * floats.dtype.itemsize - 1)
        return bool(((floats.view(unsigned) & (sign - 1)) == bits).any())
    new, old = _unsigned(memory), _unsigned(drawn)
    if memory.dtype.kind == "b":
        return bool((new == UNTRUE).any())
    return _near(new, old) or _alike(new[:SAMPLE], old[:SAMPLE])


def _near(new: Any, old: Any) -> bool:
    """Are more elements close to what was drawn than there are by chance?

    That k of n elements are, each with probability p, has a chance of at most (e n p / k)^k.
    """
    bits = 8 * new.dtype.itemsize
    away = np.minimum(new - old, old - new)  # on the circle of all numbers
    radii = range(0, bits - 1, 2)
    for radius in radii:
        near = int(np.count_nonzero(away < (1 << radius)))
        part = math.log(2 * (1 << radius) - 1) - bits * math.log(2)
        if near and near * (1 + math.log(new.size / near) + part) < math.log(CHANCE / 2 / len(radii)):
            return True
    return False


def _alike(new: Any, old: Any) -> bool:
    """Does a bit go with a bit of what was drawn, more than by chance?

    As 1 and -1 they are multiplied and added up: n terms, by Hoeffding's inequality beyond c with a chance of at most
    2 exp(-c^2 / 2n), for each pair of bits.
    """
    bits = 8 * new.dtype.itemsize
    least = math.sqrt(2 * new.size * math.log(4 * bits * bits / CHANCE))
    if least > new.size:
        return False
    signs = [2.0 * np.unpackbits(x.view(np.uint8)).reshape(x.size, bits).astype(np.float32) - 1 for x in (new, old)]
    return bool(np.abs(signs[0].T @ signs[1]).max() > least)
