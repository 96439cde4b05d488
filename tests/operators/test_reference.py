"""docs/operators.md is what the declarations say, its examples run, and `help` says the same."""

from __future__ import annotations

import doctest
import inspect
import re

from vardag import nd
from vardag.operators import reference, registry
from vardag.operators.faces import nd_function
from vardag.operators.signatures import gradient

TEXT = reference.PAGE.read_text(encoding="utf-8")


def test_the_page_is_fresh() -> None:
    assert reference.generate() == TEXT, "run python -m vardag.operators.reference"


def test_every_example_runs() -> None:
    examples = "\n".join(re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(examples, {"nd": nd}, "operators.md", "operators.md", 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, out=report.append)
    assert runner.tries > 150
    assert not runner.failures, "".join(report)


def test_operators_without_an_example_are_few() -> None:
    """Those without operands, and those that the nd face takes in another way than their samples say."""
    sections = re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]
    without = [section.split("\n", 1)[0] for section in sections if "```python" not in section]
    assert len(without) < len(sections) / 10, without


def test_signatures_have_mxnets_names() -> None:
    words = str(inspect.signature(nd.Convolution))
    assert words.startswith("(data, weight, bias=None, kernel=")
    assert list(inspect.signature(nd.concat).parameters) == ["data", "dim", "out", "ctx", "name"]
    for op in registry:
        if op.nd is not False:
            function = nd_function(op)
            assert "named" not in inspect.signature(function).parameters, op.name
            assert "Gradient: " in function.__doc__, op.name


def test_what_is_said_of_gradients() -> None:
    assert gradient(registry["tanh"]) == "x (of every order)"
    assert gradient(registry["sign"]) == "zero for x"
    assert gradient(registry["zeros"]) == "none"
    assert "a definition, not the derivative" in gradient(registry["SoftmaxOutput"])
    assert gradient(registry["Convolution"]).startswith("data, weight")
