"""Random numbers: counter-based, so that random operations do not depend on each other and any worker may run them.

Each push of a random operator takes the next number of its device's stream, in push order; the operation draws from a
Philox generator that starts at that number.  Much is drawn in blocks of `BLOCK` numbers, each from a counter of its
own, so workers can share them.  The same seed therefore gives the same bytes for any number of workers.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError
from ..engine.parallel import parallel
from ._late import nd_face
from .array import Array
from .context import Context
from .dtype import is_float

Seed = tuple[tuple[int, int], int]  # (Philox key, number of the operation)


class Stream:
    """The numbers of one device: a key and a counter.  Replaced as a whole by `seed`, so that a taker sees one of the
    two streams; `next` on a count is atomic, so no lock is needed."""

    __slots__ = ("key", "numbers")

    def __init__(self, key: tuple[int, int], number: int = 0) -> None:
        self.key = key
        self.numbers: Iterator[int] = itertools.count(number)

    @classmethod
    def seeded(cls, seed_state: int, device_id: int) -> Stream:
        """The stream of a seed."""
        first, second = np.random.SeedSequence((seed_state, device_id)).generate_state(2, np.uint64)
        return cls((int(first), int(second)))

    @property
    def number(self) -> int:
        """The next number, which stays: its text is the one thing that a count tells without counting."""
        return int(repr(self.numbers)[len("count(") : -1])


_streams: dict[str, Stream] = {}
_seed_of_new: list[int] = [secrets.randbits(32)]


def _name(context: Context) -> str:
    return f"gpu{context.device_id}" if context.device_type == "gpu" else "cpu"


class Draws:
    """The numbers that the pushes of one context have taken, to be given to the same pushes once more.

    `given`: what is given instead of new ones, None while they are noted.   `outer`: what noted or gave before.
    """

    __slots__ = ("given", "outer", "taken")

    def __init__(self, given: Iterator[Seed] | None = None, outer: Draws | None = None) -> None:
        self.taken: list[Seed] = []
        self.given, self.outer = given, outer

    def next(self, context: Context) -> Seed:
        """The number of the next push."""
        found = None if self.given is None else next(self.given, None)
        if found is None:
            found = _next(context) if self.outer is None else self.outer.next(context)
        self.taken.append(found)
        return found


#: what gives the numbers of this thread's or task's pushes, None: their device's stream
draws: ContextVar[Draws | None] = ContextVar("vardag_draws", default=None)


def take(context: Context) -> Seed:
    """The next number of the context's device.  Called once a push, in push order."""
    own = draws.get()
    return _next(context) if own is None else own.next(context)


def _next(context: Context) -> Seed:
    name = _name(context)
    stream = _streams.get(name)
    if stream is None:
        stream = _streams.setdefault(name, Stream.seeded(_seed_of_new[0], context.device_id))
    return stream.key, next(stream.numbers)


def seed(seed_state: int, ctx: Context | str = "all") -> None:
    """Seed the random generators: the same seed and the same program give the same bytes, for any number of workers.

    Parameters
    ----------
    seed_state : int
        0 or more.
    ctx : Context or "all"
        The device to seed; "all" seeds every one.

    Never blocks: operations pushed before keep their numbers.   Raises: ArgumentError at the call.

    >>> import vardag as vd
    >>> vd.random.seed(3); a = vd.nd.random.uniform(shape=2).asnumpy()
    >>> vd.random.seed(3); bool((vd.nd.random.uniform(shape=2).asnumpy() == a).all())
    True
    """
    if not isinstance(seed_state, int | np.integer) or seed_state < 0:
        raise ArgumentError(f"[seed] {seed_state!r}: an int from 0 expected")
    if isinstance(ctx, Context):
        _streams[_name(ctx)] = Stream.seeded(int(seed_state), ctx.device_id)
    elif ctx == "all":
        _seed_of_new[0] = int(seed_state)
        _streams.clear()
    else:
        raise ArgumentError(f"[seed] {ctx!r}: a Context or 'all' expected")


def get_state() -> dict[str, Any]:
    """The state of the random generators of all devices: plain numbers, for `set_state` and for files of JSON.

    It is that after all operations pushed so far.  Never blocks.
    """
    return {"seed": _seed_of_new[0], "streams": {name: [*s.key, s.number] for name, s in list(_streams.items())}}


def set_state(state: Any) -> None:
    """Go on from a state that `get_state` gave: the same program then gives the same bytes.

    Never blocks: operations pushed before keep their numbers.   Raises: ArgumentError at the call.

    >>> import vardag as vd
    >>> state = vd.random.get_state(); a = vd.nd.random.normal(shape=3).asnumpy()
    >>> vd.random.set_state(state); bool((vd.nd.random.normal(shape=3).asnumpy() == a).all())
    True
    """
    try:
        first = _natural(state["seed"])
        streams = {
            str(name): Stream((_natural(a), _natural(b)), _natural(n)) for name, (a, b, n) in state["streams"].items()
        }
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ArgumentError("[set_state] a state that get_state gave expected") from None
    _seed_of_new[0] = first
    _streams.clear()
    _streams.update(streams)


def _natural(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise ValueError
    return value


BLOCK = 1 << 16  # numbers: part of the definition of what a seed gives


def generator(taken: Seed, block: int = 0) -> np.random.Generator:
    """The generator of one operation, or of one block of its numbers."""
    key, number = taken
    counter: Any = (0, block, number, 0)
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64), counter=counter))


def draw_into(out: Any, taken: Seed, draw: Callable[[np.random.Generator, int], Any]) -> None:
    """Fill `out` with independent numbers: ``draw(generator, n)`` gives n of them."""
    flat = out.reshape(-1) if out.flags.c_contiguous else np.empty(out.size, out.dtype)

    def fill(block: int) -> None:
        part = flat[block * BLOCK : (block + 1) * BLOCK]
        part[...] = draw(generator(taken, block), len(part))

    parallel(fill, range(-(-out.size // BLOCK)))
    if not out.flags.c_contiguous:
        out[...] = flat.reshape(out.shape)


# ---- draws: the operators of operators/random.py under the names of MXNet --------------------------------------------


def _draw(name: str, parameters: Sequence[Any], shape: Any, dtype: Any, ctx: Any, out: Any) -> Any:
    """One distribution, with numbers or (one for each of their elements) arrays as parameters."""
    like = next((p for p in parameters if hasattr(p, "shape") and p.shape), None)
    if like is not None:
        arrays = [p if hasattr(p, "shape") and p.shape else nd_face.zeros_like(like) + p for p in parameters]
        return getattr(nd_face, f"sample_{name}")(*arrays, shape=shape, dtype=dtype, out=out)
    shape = out.shape if shape is None and out is not None else shape
    return getattr(nd_face, f"random_{name}")(*parameters, shape=shape, dtype=dtype, ctx=ctx, out=out)


def uniform(low: Any = 0, high: Any = 1, shape: Any = None, dtype: Any = None, ctx: Any = None, out: Any = None) -> Any:
    """Uniform numbers in [low, high).

    Parameters
    ----------
    low, high : number, or arrays of one shape (s...)
        Arrays draw `shape` numbers for each of their elements: the result is (s..., shape...).
    shape : int or tuple
        Default: one number.
    dtype : floating-point dtype
        Default: float32.

    Never blocks.   Raises: ArgumentError at the call, for low > high too.

    >>> from vardag import nd
    >>> nd.random.uniform(0, 1, shape=(2, 3)).shape
    (2, 3)
    """
    return _draw("uniform", (low, high), shape, dtype, ctx, out)


def normal(loc: Any = 0, scale: Any = 1, shape: Any = None, dtype: Any = None, ctx: Any = None, out: Any = None) -> Any:
    """Normal numbers of this mean and standard deviation (0 or more).  For the rest see `uniform`."""
    return _draw("normal", (loc, scale), shape, dtype, ctx, out)


def randn(*shape: int, loc: Any = 0, scale: Any = 1, dtype: Any = None, ctx: Any = None, out: Any = None) -> Any:
    """Normal numbers of a shape given as arguments.  For the rest see `uniform`."""
    return _draw("normal", (loc, scale), shape, dtype, ctx, out)


def gamma(alpha: Any = 1, beta: Any = 1, shape: Any = None, dtype: Any = None, ctx: Any = None, out: Any = None) -> Any:
    """Gamma-distributed numbers of shape alpha and scale beta (above 0).  For the rest see `uniform`."""
    return _draw("gamma", (alpha, beta), shape, dtype, ctx, out)


def exponential(scale: Any = 1, shape: Any = None, dtype: Any = None, ctx: Any = None, out: Any = None) -> Any:
    """Exponentially distributed numbers of mean scale (above 0).  For the rest see `uniform`."""
    return _draw(
        "exponential", (1.0 / scale if hasattr(scale, "shape") or scale > 0 else scale,), shape, dtype, ctx, out
    )


def poisson(lam: Any = 1, shape: Any = None, dtype: Any = None, ctx: Any = None, out: Any = None) -> Any:
    """Poisson-distributed numbers of mean lam (0 or more).  For the rest see `uniform`."""
    return _draw("poisson", (lam,), shape, dtype, ctx, out)


def negative_binomial(
    k: Any = 1, p: Any = 1, shape: Any = None, dtype: Any = None, ctx: Any = None, out: Any = None
) -> Any:
    """Numbers of failures before the k-th success, each success of probability p.  For the rest see `uniform`."""
    return _draw("negative_binomial", (k, p), shape, dtype, ctx, out)


def generalized_negative_binomial(
    mu: Any = 1, alpha: Any = 1, shape: Any = None, dtype: Any = None, ctx: Any = None, out: Any = None
) -> Any:
    """Negative binomial numbers of mean mu and dispersion alpha (above 0).  For the rest see `uniform`."""
    return _draw("generalized_negative_binomial", (mu, alpha), shape, dtype, ctx, out)


def randint(low: int, high: int, shape: Any = None, dtype: Any = None, ctx: Any = None, out: Any = None) -> Any:
    """Integers from low to high - 1, each as likely; int32 by default.  For the rest see `uniform`."""
    shape = out.shape if shape is None and out is not None else shape
    return nd_face.random_randint(low=low, high=high, shape=shape, dtype=dtype, ctx=ctx, out=out)


def bernoulli(prob: Any = 0.5, shape: Any = None, dtype: Any = None, ctx: Any = None, out: Any = None) -> Any:
    """1 with probability prob, else 0.  For the rest see `uniform`."""
    return _draw("bernoulli", (prob,), shape, dtype, ctx, out)


def multinomial(data: Any, shape: Any = None, get_prob: bool = False, out: Any = None, dtype: Any = "int32") -> Any:
    """Indices along the last axis of data, drawn by the probabilities there.

    Parameters
    ----------
    data : array of shape (s..., k)
        Probabilities; they need not add up to 1.
    shape : int or tuple
        How many to draw for each row; default: one, without an axis.
    get_prob : bool
        Give (indices, their log-probabilities); gradients flow from these to data.

    Returns an array of shape (s..., shape...).   Never blocks.
    """
    return nd_face.sample_multinomial(data, shape=shape, get_prob=get_prob, dtype=dtype, out=out)


def shuffle(data: Any, out: Any = None) -> Any:
    """The elements along the first axis of data in random order.  Never blocks."""
    return nd_face.shuffle(data, out=out)


# ---- draws of the shape of an array ----------------------------------------------------------------------------------


def _draw_like(name: str, data: Any, out: Any, **parameters: float) -> Any:
    """Numbers of the shape, the dtype (float32, if that is of integers) and the context of an array."""
    if not isinstance(data, Array):
        raise ArgumentTypeError(f"[{name}_like] {data!r}: an array expected")
    dtype = data._dtype if is_float(data._dtype) else None
    return getattr(nd_face, f"random_{name}")(shape=data.shape, dtype=dtype, ctx=data.context, out=out, **parameters)


def uniform_like(data: Any, low: float = 0, high: float = 1, out: Any = None) -> Any:
    """`uniform` of the shape, the dtype and the context of an array, whose values don't matter.  Never blocks."""
    return _draw_like("uniform", data, out, low=low, high=high)


def normal_like(data: Any, loc: float = 0, scale: float = 1, out: Any = None) -> Any:
    """`normal` of the shape, the dtype and the context of an array.  Never blocks."""
    return _draw_like("normal", data, out, loc=loc, scale=scale)


def gamma_like(data: Any, alpha: float = 1, beta: float = 1, out: Any = None) -> Any:
    """`gamma` of the shape, the dtype and the context of an array.  Never blocks."""
    return _draw_like("gamma", data, out, alpha=alpha, beta=beta)


def exponential_like(data: Any, lam: float = 1, out: Any = None) -> Any:
    """Exponential numbers of *rate* lam, of the shape, the dtype and the context of an array.  Never blocks."""
    return _draw_like("exponential", data, out, lam=lam)


def poisson_like(data: Any, lam: float = 1, out: Any = None) -> Any:
    """`poisson` of the shape, the dtype and the context of an array.  Never blocks."""
    return _draw_like("poisson", data, out, lam=lam)


def negative_binomial_like(data: Any, k: float = 1, p: float = 1, out: Any = None) -> Any:
    """`negative_binomial` of the shape, the dtype and the context of an array.  Never blocks."""
    return _draw_like("negative_binomial", data, out, k=k, p=p)


def generalized_negative_binomial_like(data: Any, mu: float = 1, alpha: float = 1, out: Any = None) -> Any:
    """`generalized_negative_binomial` of the shape, the dtype and the context of an array.  Never blocks."""
    return _draw_like("generalized_negative_binomial", data, out, mu=mu, alpha=alpha)
