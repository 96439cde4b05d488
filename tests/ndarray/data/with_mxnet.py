"""Run by the real MXNet 1.9.1, not by vardag: writes the files beside this one, or reads files that vardag wrote.

python3.11 -m venv mx && mx/bin/pip install mxnet==1.9.1 numpy==1.23.5
mx/bin/python tests/ndarray/data/with_mxnet.py write tests/ndarray/data
mx/bin/python tests/ndarray/data/with_mxnet.py read FILE...      # prints what is in them, as JSON
mx/bin/python tests/ndarray/data/with_mxnet.py sparse tests/ndarray/data
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    import mxnet as mx

DTYPES = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool")


#: What tests/operators/test_mxnet_answers.py evaluates too: the operands, and expressions of them.
OPERANDS = {
    "a": "sp.csr_matrix(([1, 2, 3], [1, 0, 2], [0, 1, 2, 2, 3]), shape=(4, 3))",
    "b": "sp.csr_matrix(([4, -3, 5, 1], [0, 0, 1, 2], [0, 1, 2, 3, 4]), shape=(4, 3))",
    "r": "sp.row_sparse_array(([[1, 2], [3, 4]], [1, 4]), shape=(6, 2))",
    "q": "sp.row_sparse_array(([[1, -2], [3, 0.5]], [0, 4]), shape=(6, 2))",
    "d": "nd.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 1, 0]])",
    "e": "nd.array([[1, 2], [0, 0], [3, 4], [5, 0], [0, 6], [0, 0]])",
}
EXPRESSIONS = """
a; a[0]; a[-1]; a[1:3]; a[:]; a.data; a.indices; a.indptr; r; r[:]; r.data; r.indices; a.copy(); r.copy()
a * 2; 2 * a; a / 2; a + 1; a - 1; 1 - a; 1 / r; -a; r * 3; r / 4; r + 1; a ** 2; a == a; r != q
a + b; a * b; r + q; r - q; r * q; r / q; a / b; a + d; d + a; d - a; a - d; r + e; e - r; a * d; r * e; r / e
sp.dot(a, d.T.copy()); sp.dot(a, d[:3]); sp.dot(a, d, transpose_a=True); nd.dot(a, e[:3])
sp.dot(a, d, transpose_a=True, forward_stype="default"); nd.dot(a, sp.row_sparse_array(([[1, 2]], [1]), shape=(3, 2)))
sp.retain(r, nd.array([0, 1, 4])); sp.retain(r, nd.array([0, 3])); sp.retain(q, nd.array([4]))
nd.cast_storage(d, "csr"); nd.cast_storage(d, "row_sparse"); e.tostype("row_sparse"); e.tostype("csr")
a.tostype("default"); r.tostype("default"); a.tostype("csr"); r.tostype("row_sparse"); nd.cast_storage(a, "default")
sp.zeros("csr", (2, 3)); sp.zeros("row_sparse", (2, 3)); sp.zeros("default", (2, 3)); sp.empty("csr", (2, 3))
nd.zeros((2, 3), stype="csr"); sp.csr_matrix((2, 3)); sp.row_sparse_array((6, 2)); sp.csr_matrix([[1, 0], [0, 2]])
sp.csr_matrix(([1, 2], [0, 5], [0, 1, 2])); sp.csr_matrix(d); sp.csr_matrix(a, dtype="float64"); sp.array(a)
sp.array(r); sp.csr_matrix(nd.array([[0, 1]], dtype="int32")); sp.row_sparse_array([[0, 0], [1, 0]]); a.astype("int32")
r.astype("float64"); r.copyto(nd.zeros((6, 2))); a.copyto(nd.zeros((4, 3))); e.copyto(r); r.copyto(q)
sp.abs(-r); sp.square(a); sp.sqrt(a); sp.sign(b); sp.sin(a); sp.log1p(a); sp.expm1(a); sp.floor(q); sp.rint(q)
sp.trunc(q); sp.exp(a); sp.cos(r); sp.relu(q); sp.negative(a); sp.clip(a, -1, 2); sp.sigmoid(a)
sp.sum(a); sp.sum(a, axis=0); sp.sum(a, axis=1); sp.sum(a, axis=1, keepdims=True); sp.mean(a, axis=0); sp.norm(a)
sp.norm(r); sp.concat(a, b, dim=0); sp.concat(a, b, dim=1); sp.slice(a, begin=(1,), end=(3,)); a.T
sp.where(a, d, d * 2); sp.add_n(r, q); sp.zeros_like(r); nd.ones_like(r); sp.elemwise_add(r, q); sp.elemwise_add(r, e)
sp.elemwise_sub(r, q); sp.elemwise_mul(r, q); sp.elemwise_mul(r, e); sp.broadcast_add(a, nd.ones((1, 3)))
nd.sgd_update(e, r, out=e, lr=0.5, wd=0.25); nd.sgd_update(e, r, out=e, lr=0.5, wd=0.25, lazy_update=False)
nd.sgd_mom_update(e, r, e * 2, out=e, lr=0.5, momentum=0.5, wd=0.25, clip_gradient=2)
nd.sgd_mom_update(e, r, e * 2, out=e, lr=0.5, momentum=0.5, wd=0.25, lazy_update=False)
nd.adam_update(e, r, e * 2, e * 3, out=e, lr=0.5, wd=0.25); sp.adagrad_update(e, r, e * 3, out=e, lr=0.5)
nd.adam_update(e, r, e * 2, e * 3, out=e, lr=0.5, wd=0.25, lazy_update=False)
"""


def expressions() -> list[str]:
    return [text.strip() for line in EXPRESSIONS.strip().splitlines() for text in line.split(";")]


def evaluated(text: str, nd: Any) -> list[Any]:
    """What an expression gives: storage type, dtype, shape, values, and if it is sparse the indices that are stored."""
    known: dict[str, Any] = {"nd": nd, "sp": nd.sparse}
    for name, operand in OPERANDS.items():
        known[name] = eval(operand, known)
    found = eval(text, known)
    stored = found.indices.asnumpy().tolist() if found.stype != "default" else None
    if found.stype == "csr":  # MXNet's may have room for more
        stored = stored[: int(found.indptr.asnumpy()[-1])]
    return [found.stype, np.dtype(found.dtype).name, list(found.shape), found.asnumpy().tolist(), stored]


def sparse(folder: Path) -> None:
    found = {text: evaluated(text, mx.nd) for text in expressions()}
    lines = ",\n".join(f"{json.dumps(text)}: {json.dumps(value)}" for text, value in found.items())
    (folder / "mxnet-sparse.json").write_text("{" + lines + "}\n")


def write(folder: Path) -> None:
    nd = mx.nd
    values = np.array([[0, 1, 2], [3, 100, 127]])
    nd.save(str(folder / "mxnet-dtypes.params"), {f"arg:{d}": nd.array(values, dtype=d) for d in DTYPES})
    nd.save(str(folder / "mxnet-list.params"), [nd.arange(5), nd.zeros((2, 1, 3), dtype="int64")])
    nd.save(str(folder / "mxnet-empty.params"), {})
    sparse = nd.sparse.row_sparse_array(([[1, 2]], [1]), shape=(3, 2))
    nd.save(str(folder / "mxnet-row-sparse.params"), {"dense": nd.ones(2), "rows": sparse, "after": nd.ones(1)})
    nd.save(str(folder / "mxnet-csr.params"), {"compressed": nd.sparse.csr_matrix([[1, 0], [0, 2]])})

    net = mx.gluon.nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(mx.gluon.nn.Conv2D(2, 3, in_channels=1), mx.gluon.nn.BatchNorm(in_channels=2))
        net.add(mx.gluon.nn.Dense(3, in_units=8))
    mx.random.seed(7)
    net.initialize(mx.init.Xavier())
    net.save_parameters(str(folder / "mxnet-gluon.params"))

    mx.npx.set_np()
    shapes = {"scalar": (), "empty": (0, 3), "vector": (2,)}
    mx.npx.save(str(folder / "mxnet-numpy.params"), {name: mx.np.ones(shape) for name, shape in shapes.items()})


def described(raw: Any) -> list[Any]:
    return [raw.dtype.name, list(raw.shape), raw.tobytes().hex()]


def read(file: str) -> Any:
    data = Path(file).read_bytes()
    numpy_shapes = data[24:28] == b"\xca\xfa\x93\xf9"  # such files can only be read in that mode
    if numpy_shapes:
        mx.npx.set_np()
    else:
        mx.npx.reset_np()
    found = (mx.npx if numpy_shapes else mx.nd).load(file)
    if isinstance(found, dict):
        return {name: described(array.asnumpy()) for name, array in found.items()}
    return [described(array.asnumpy()) for array in found]


if __name__ == "__main__":
    if sys.argv[1] in ("write", "sparse"):
        globals()[sys.argv[1]](Path(sys.argv[2]))
    else:
        print(json.dumps([read(file) for file in sys.argv[2:]]))
