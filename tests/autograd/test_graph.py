"""The graph as something to look at: its nodes, Graphviz's text, pictures."""

from __future__ import annotations

import inspect
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.engine import ArgumentError, ArgumentTypeError


def network() -> Any:
    w, b = nd.ones((4, 3)), nd.zeros(4)
    w.attach_grad()
    b.attach_grad()
    with autograd.record():
        h = nd.dot(nd.ones((2, 3)), w, transpose_b=True) + b
        h[1:] = 0
        first, second = nd.split(nd.tanh(h), num_outputs=2, axis=1)
        y = (first * second).sum()
    return y, h, w, b


def test_operators_shapes_dtypes_lines_and_edges() -> None:
    y, h, w, b = network()
    start = inspect.getsourcelines(network)[1]
    graph = autograd.graph([y, h], names={"w": w, "b": b})
    assert autograd.get_symbol(y).nodes == autograd.graph(y).nodes
    by_name = {node.name: (i, node) for i, node in enumerate(graph.nodes)}
    assert by_name["w"][1] == ("variable", "w", ("float32(4, 3)",), "", (), {}, ())
    position, dot = by_name["dot"]
    assert dot.kind == "operator" and dot.inputs == ((by_name["w"][0], 0),) and dot.outputs == ("float32(2, 4)",)
    assert dot.attributes == {"transpose_a": False, "transpose_b": True}
    assert dot.line.endswith(f"test_graph.py:{start + 5}")
    assert by_name["add"][1].inputs == ((position, 0), (by_name["b"][0], 0))
    written = by_name["write to a part"][1]
    assert written.heads == (1,) and written.line.endswith(f"test_graph.py:{start + 6}")
    assert graph.nodes[-1].heads == (0,) and graph.nodes[-1].name == "sum"
    for i, node in enumerate(graph.nodes):
        assert all(k < i for k, _ in node.inputs)
    assert "write to a part" in str(graph) and "variables>" in repr(graph)
    y.backward()  # it was only looked at
    assert b.grad.asnumpy().tolist() != [0] * 4


def test_functions_custom_operators_and_checkpoints() -> None:
    class Twice(autograd.Function):
        def forward(self, x: Any) -> Any:
            return x * 2

    @autograd.custom_gradient(lambda g, x: g)
    def rounded(x: Any) -> Any:
        return nd.round(x)

    @autograd.checkpoint
    def block(x: Any) -> Any:
        return nd.tanh(x) * x

    x = nd.ones(2)
    x.attach_grad()
    with autograd.record():
        y = block(rounded(Twice()(x)))
    names = [node.name for node in autograd.graph(y).nodes]
    assert names == ["variable", "Twice", "rounded", "checkpoint of block"]


def test_a_marked_array_is_a_graph() -> None:
    x = nd.ones((2, 2))
    x.attach_grad()
    (node,) = autograd.graph(x).nodes
    assert node.kind == "variable" and node.outputs == ("float32(2, 2)",) and node.heads == (0,)
    table = nd.ones((5, 2))
    table.attach_grad(stype="row_sparse")
    (node,) = autograd.graph(table, {"table": table}).nodes
    assert node.name == "table" and node.outputs == ("float32(5, 2)",)


def test_deep_graphs() -> None:
    x = nd.ones(1)
    x.attach_grad()
    with autograd.record():
        y = x
        for _ in range(20_000):
            y = y + 1
    graph = autograd.graph(y)
    assert len(graph.nodes) == 20_001 and graph.to_dot().count("->") == 20_000


def test_the_text_for_graphviz() -> None:
    y, _, w, b = network()
    text = autograd.graph(y, names={'the "weight"': w, "back\\slash": b}).to_dot()
    assert text.startswith("digraph {") and text.endswith("}\n")
    assert r"the \"weight\"\nfloat32(4, 3)" in text and "back\\\\slash" in text
    assert text.count("->") == sum(len(node.inputs) for node in autograd.graph(y).nodes)


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_pictures_by_matplotlib(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    y, h, w, _ = network()
    path = tmp_path / f"graph.{ending}"
    autograd.graph([y, h], names={"$w$": w}).save(path)
    begins = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[ending]
    assert path.read_bytes().startswith(begins) and path.stat().st_size > 2000


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script")
def test_pictures_by_graphviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for its program writes down how it was called."""
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\nprintf "%s " "$@" > "$3"\ncat >> "$3"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(shutil, "which", lambda name: str(program) if name == "dot" else None)
    y = network()[0]
    path = tmp_path / "graph.svg"
    graph = autograd.graph(y)
    graph.save(path)
    assert path.read_text() == f"-Tsvg -o {path} " + graph.to_dot()
    program.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(subprocess.CalledProcessError):
        graph.save(path)


def test_files_of_text(tmp_path: Path) -> None:
    graph = autograd.graph(network()[0])
    for ending in ("dot", "gv"):
        graph.save(tmp_path / f"graph.{ending}")
        assert (tmp_path / f"graph.{ending}").read_text() == graph.to_dot()
    with pytest.raises(ArgumentError, match=r"\.png, \.svg expected"):
        graph.save(tmp_path / "graph.jpg")


def test_without_a_program_and_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ArgumentError, match="needs Graphviz's program dot, or matplotlib"):
        autograd.graph(network()[0]).save(tmp_path / "graph.png")


def test_arrays_without_a_graph_are_errors() -> None:
    with pytest.raises(autograd.GraphError, match=r"\[graph\] float32\(2,\) is on no graph"):
        autograd.graph(nd.ones(2))
    with pytest.raises(ArgumentTypeError, match="an array expected"):
        autograd.graph([3])
    x = nd.ones(2)
    x.attach_grad()
    with autograd.record():
        y = nd.tanh(x)
    with pytest.raises(autograd.GraphError, match="is on no graph"):
        autograd.get_symbol(y.detach())
    y.backward()
    with pytest.raises(autograd.GraphError, match=r"the graph of tanh, recorded at .*test_graph\.py:\d+, was freed"):
        autograd.graph(y)
    assert isinstance(vd.autograd.Graph, type)
