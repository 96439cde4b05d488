"""The checked-in names of ``vardag.nd`` are those of the registry."""

import re

import pytest

from vardag import nd
from vardag.operators import registry, stubs


def test_stub_file_is_fresh():
    assert stubs.TARGET.read_text() == stubs.generate(), "run python -m vardag.operators.stubs"


@pytest.mark.parametrize("space", stubs.SPACES)
def test_stub_files_of_namespaces_are_fresh(space):
    assert stubs.SPACES[space].read_text() == stubs.generate_space(space), "run python -m vardag.operators.stubs"
    module = getattr(nd, space)
    assert sorted(dir(module)) == sorted(re.findall(r"^def (\w+)\(", stubs.SPACES[space].read_text(), re.MULTILINE))
    assert all(callable(getattr(module, name)) for name in dir(module))


def test_every_nd_operator_is_named():
    text = stubs.TARGET.read_text()
    for name in dir(nd):
        users = name in registry and not registry.has_own(name)
        if not name.startswith("_") and callable(getattr(nd, name)) and not users:
            assert f"def {name}(" in text or f" as {name}" in text or f"class {name}" in text, name
