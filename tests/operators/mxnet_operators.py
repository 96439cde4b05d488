"""What MXNet 1.9.1 answers to the samples of the registry, and to random shapes: values and gradients, float32.

Three steps, since MXNet needs a Python and a NumPy of its own:

    python tests/operators/mxnet_operators.py ask questions.npz          (this library's interpreter)
    PATH/python tests/operators/mxnet_operators.py answer questions.npz  (MXNet's; it writes mxnet_operators.npz here)

tests/operators/test_mxnet_operators.py asks again and compares; `make operators` prints the deviations.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

ANSWERS = Path(__file__).with_name("mxnet_operators.npz")
NAMES = Path(__file__).with_name("mxnet_names.json")
SHAPES = [(7,), (3, 1, 4), (2, 3, 2, 2)]  # of elementwise operators, besides those of their samples
PATIENCE = 60.0  # seconds for one process
MIDDLE = 1 << 17  # about as many elements has the first operand of what is timed


def heads(shape: tuple[int, ...], i: int) -> Any:
    """Head gradients of output i, the same on both sides."""
    n = int(np.prod(shape))
    return (np.cos(np.arange(n) * 1.3 + i).reshape(shape)).astype(np.float32)


def questions() -> list[dict[str, Any]]:
    """Every name of MXNet's that the library has: {key, name, operands (name or None, array), attributes, marked}."""
    from vardag import nd
    from vardag.operators import registry
    from vardag.operators.faces import PLAIN
    from vardag.operators.schema import Sample
    from vardag.operators.signatures import meant_by
    from vardag.operators.testing import Case

    known = set(json.loads(NAMES.read_text())["nd"])
    found = []
    for op in registry:
        names = [n for n in (op.name, *op.aliases) if n in known and hasattr(nd, n)]
        if op.nd is False or op.random or not names or not op.samples:
            continue
        rule = op.nd or PLAIN
        spelled = {new: old for old, new in rule.rename.items()}
        meant, samples = meant_by(op), list(op.samples)
        if op.elementwise and all(not isinstance(x, np.ndarray) for x in samples[0].inputs):
            first = samples[0]
            many = len(first.inputs)
            samples += [Sample(*[s] * many, low=first.low, high=first.high, **first.attributes) for s in SHAPES]
        for number, sample in enumerate(samples):
            case = Case(op, number, sample)
            raws = case.raws()
            gaps = None in [None if x is None else 0 for x in raws] or bool(rule.order)
            operands = [
                (None if op.variadic or not gaps else spelled.get(case.name(i), case.name(i)), x)
                for i, x in enumerate(raws)
                if x is not None
            ]
            attributes = {spelled.get(n, n): v for n, v in sample.attributes.items()}
            connected = [
                i
                for i, x in enumerate(raws)
                if x is not None and x.dtype == np.float32 and meant.gradient_of(i) is not None and not op.updates
            ]
            marked = [sum(x is not None for x in raws[:i]) for i in connected]
            for name in names:
                found.append(
                    {"key": f"{name}/{number}", "name": name, "operands": operands, "attributes": attributes,
                     "marked": marked}
                )  # fmt: skip
    return found + random_questions()


def shapes() -> Any:
    """mxnet_shapes.py."""
    spec: Any = importlib.util.spec_from_file_location("mxnet_shapes", Path(__file__).with_name("mxnet_shapes.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_questions() -> list[dict[str, Any]]:
    """Of random shapes and attributes, and at kinks."""
    module, found, numbers = shapes(), [], {}
    calls = [(f"{name}/random{number}", name, *call) for name, number, *call in module.calls()]
    for name, *call in module.kinks():
        numbers[name] = numbers.get(name, -1) + 1
        calls.append((f"{name}/kink{numbers[name]}", name, *call))
    for key, name, operands, attributes in calls:
        marked = [i for i, x in enumerate(operands) if x.dtype == np.float32]
        found.append(
            {"key": key, "name": name, "operands": [(None, x) for x in operands], "attributes": attributes,
             "marked": marked[:3] if name == "BatchNorm" else marked}
        )  # fmt: skip
    return found


def write(answers: dict[str, dict[str, Any]]) -> None:
    """All answers as one row of bytes, for a file of many small arrays would be large."""
    words, blob = [], b""
    for key, parts in answers.items():
        for part, given in parts.items():
            value = np.asarray(given)
            words.append([key, part, value.dtype.str, value.shape])
            blob += value.tobytes()
    np.savez_compressed(ANSWERS, words=np.array(json.dumps(words)), blob=np.frombuffer(blob, np.uint8))


def answers() -> dict[str, dict[str, Any]]:
    """{key: {part: value}}: "o0", ... outputs, "g0", ... gradients; "error", "why" what MXNet said instead."""
    found: dict[str, dict[str, Any]] = {}
    with np.load(ANSWERS) as file:
        words, blob = json.loads(str(file["words"])), file["blob"].tobytes()
    at = 0
    for key, part, kind, shape in words:
        dtype, count = np.dtype(kind), int(np.prod(shape, dtype=int))
        found.setdefault(key, {})[part] = np.frombuffer(blob, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    return found


def timed_questions() -> list[dict[str, Any]]:
    """Questions for each operator, with operands of a middle size: that of `mxnet_shapes.middle`, and its first sample,
    or what is like it, repeated along the first axis."""
    from vardag import nd

    found: list[dict[str, Any]] = []
    for name, operands, attributes in shapes().middle():
        values = [(None, x.tolist(), str(x.dtype), False) for x in operands]
        found.append({"name": name, "attributes": attributes, "operands": values, "times": 1})
    seen = {id(getattr(nd, asked["name"])) for asked in found}
    for question in questions():
        function = getattr(nd, question["name"])
        operands = question["operands"]
        if id(function) in seen or not operands or not operands[0][1].ndim or not operands[0][1].size:
            continue
        first = operands[0][1]
        asked = {
            "name": question["name"],
            "attributes": question["attributes"],
            "operands": [(n, x.tolist(), str(x.dtype), x.ndim > 0 and len(x) == len(first)) for n, x in operands],
            "times": max(1, MIDDLE // first.size),
        }
        try:
            timed(nd, lambda x: nd.array(x, dtype=x.dtype), asked, 1)
        except Exception:
            continue  # its other operands, or attributes, fit the sample's shape only
        found.append(asked)
        seen.add(id(function))
    return found


def timed(nd: Any, array: Any, question: dict[str, Any], rounds: int = 15) -> float:
    """The least seconds of one call with its wait."""
    named, listed = {}, []
    for name, values, dtype, repeated in question["operands"]:
        raw = np.array(values, dtype)
        x = array(np.concatenate([raw] * question["times"]) if repeated else raw)
        if name is None:
            listed.append(x)
        else:
            named[name] = x
    function, attributes, best = getattr(nd, question["name"]), question["attributes"], float("inf")
    for _ in range(rounds + 2):
        begin = time.perf_counter()
        made = function(*listed, **named, **attributes)
        for y in made if isinstance(made, list | tuple) else (made,):
            y.wait_to_read()
        best = min(best, time.perf_counter() - begin)
    return best


def clock() -> None:
    """Time what standard input asks, for `benchmarks/operators.py`: MXNet's interpreter."""
    import mxnet as mx

    for line in sys.stdin:
        question = json.loads(line)
        question["attributes"] = {n: tuple(v) if isinstance(v, list) else v for n, v in question["attributes"].items()}
        try:
            seconds: Any = timed(mx.nd, lambda x: mx.nd.array(x, dtype=x.dtype), question)
        except Exception:
            seconds = None
        print(json.dumps(seconds), flush=True)


def call(nd: Any, autograd: Any, array: Any, question: dict[str, Any]) -> dict[str, Any]:
    """Outputs "o0", ... and gradients "g0", ..., by whichever library `nd` is."""
    arrays = [array(x) for _, x in question["operands"]]
    places = [i for i in question["marked"] if arrays[i].dtype == np.float32]
    for i in places:
        arrays[i].attach_grad()
    named = {n: x for (n, _), x in zip(question["operands"], arrays) if n is not None}  # noqa: B905
    listed = [x for (n, _), x in zip(question["operands"], arrays) if n is None]  # noqa: B905
    untrained = "projection_size" in question["attributes"]  # MXNet's gradient of that needs a GPU
    with autograd.pause() if untrained else autograd.record():
        made = getattr(nd, question["name"])(*listed, **named, **question["attributes"])
        made = list(made) if isinstance(made, list | tuple) else [made]
    found = {f"o{i}": y.asnumpy() for i, y in enumerate(made)}
    if places and not untrained:
        floats = [y for y in made if y.dtype == np.float32]
        try:
            autograd.backward(floats, [array(heads(y.shape, i)) for i, y in enumerate(floats)])
            found.update({f"g{i}": arrays[i].grad.asnumpy() for i in places})
        except Exception as error:
            found["why"] = np.array(str(error).strip().splitlines()[-1][:100])
    return found


def ask(path: str) -> None:
    """Write the questions down."""
    asked = questions()
    arrays = {f"{i}/{k}": x for i, q in enumerate(asked) for k, (_, x) in enumerate(q["operands"])}
    words = [{**q, "operands": [n for n, _ in q["operands"]]} for q in asked]
    np.savez_compressed(path, words=np.array(json.dumps(words)), **arrays)
    print(len(asked), "questions")


def some(path: str, start: str, out: str) -> None:
    """Ask MXNet, from one question on; each answer is written down at once, for its process may die of the next."""
    import mxnet as mx

    with np.load(path) as file, open(out, "ab") as stream:
        words = json.loads(str(file["words"]))
        for i, question in enumerate(words[int(start) :], int(start)):
            operands = [(n, file[f"{i}/{k}"]) for k, n in enumerate(question["operands"])]
            attributes = {n: tuple(v) if isinstance(v, list) else v for n, v in question["attributes"].items()}
            asked = {**question, "operands": operands, "attributes": attributes}
            try:
                answers = call(mx.nd, mx.autograd, lambda x: mx.nd.array(x, dtype=x.dtype), asked)
            except Exception as error:
                answers = {"error": np.array(str(error).strip().splitlines()[-1][:100])}
            pickle.dump(answers, stream)
            stream.flush()


def answer(path: str) -> None:
    """Ask MXNet everything, in as many processes as it takes."""
    with np.load(path) as file:
        words = json.loads(str(file["words"]))
    out, done = Path(path + ".answers"), []
    while len(done) < len(words):
        out.write_bytes(b"")
        arguments = [sys.executable, __file__, "some", path, str(len(done)), str(out)]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(arguments, check=False, timeout=PATIENCE)
        with out.open("rb") as stream, suppress(EOFError):
            while True:
                done.append(pickle.load(stream))
        if len(done) < len(words):
            done.append({"error": np.array("MXNet's process ends, or hangs")})
    found = {q["key"]: given for q, given in zip(words, done)}  # noqa: B905
    write(found)
    print(len(words), "answers,", sum("error" in given for given in found.values()), "of them errors")


def names() -> None:
    """Write down what MXNet has."""
    import mxnet as mx

    spaces = {"nd": mx.nd, "random": mx.nd.random, "linalg": mx.nd.linalg, "contrib": mx.nd.contrib}
    found = {
        space: [n for n in dir(module) if not n.startswith("_") and callable(getattr(module, n))]
        for space, module in spaces.items()
    }
    NAMES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    {"ask": ask, "answer": answer, "some": some, "names": names, "clock": clock}[sys.argv[1]](*sys.argv[2:])
