"""Run by the real MXNet 1.9.1, not by vardag: writes the files beside this one, or reads files that vardag wrote.

python3.11 -m venv mx && mx/bin/pip install mxnet==1.9.1 numpy==1.23.5
mx/bin/python tests/ndarray/data/with_mxnet.py write tests/ndarray/data
mx/bin/python tests/ndarray/data/with_mxnet.py read FILE...      # prints what is in them, as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np

DTYPES = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool")


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
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        print(json.dumps([read(file) for file in sys.argv[2:]]))
