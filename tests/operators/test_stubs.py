"""The checked-in names of ``vardag.nd`` are those of the registry."""

from vardag.operators import registry, stubs


def test_stub_file_is_fresh():
    assert stubs.TARGET.read_text() == stubs.generate(), "run python -m vardag.operators.stubs"


def test_every_nd_operator_is_named():
    from vardag import nd

    text = stubs.TARGET.read_text()
    for name in dir(nd):
        users = name in registry and not registry.has_own(name)
        if not name.startswith("_") and callable(getattr(nd, name)) and not users:
            assert f"def {name}(" in text or f" as {name}" in text or f"class {name}" in text, name
