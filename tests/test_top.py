"""`python -m vardag.top`: a process that lets itself be seen is seen, and nobody else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from vardag import nd, top
from vardag.engine import ArgumentError, Engine, serve, status
from vardag.engine.testing import Gate

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Unix sockets only")


@pytest.fixture(autouse=True)
def own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(status.tempfile, "tempdir", str(tmp_path))


def test_what_a_process_tells() -> None:
    with Engine(workers=1) as e, serve():
        gate = Gate()
        e.push(gate, name="stuck")
        gate.wait_entered()
        last = e.push(lambda: None, name="behind")
        answer = status.ask(os.getpid())
        gate.open()
        last.wait()
    (told,) = [found for found in answer["engines"] if found["pending"]]
    assert told["names"] == {"stuck": 1, "behind": 1}
    (running,) = told["running"]
    assert running["name"] == "stuck"
    assert "test_top.py" in running["line"]
    assert [lane["workers"] for lane in told["lanes"]] == [1]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    assert top.main(["--once"]) == 2
    assert "VARDAG_TOP=1" in capsys.readouterr().err
    with Engine(workers=1) as e, serve():
        nd.ones(3).wait_to_read()
        e.waitall()
        assert top.main(["--once"]) == 0
        assert "lane" in capsys.readouterr().out
        assert top.main([str(os.getpid()), "--once"]) == 0
    assert top.main([str(os.getpid()), "--once"]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_nobody_is_seen_unasked(tmp_path: Any) -> None:
    program = (
        "import sys; from vardag import nd; nd.ones(3).wait_to_read(); print('ready', flush=True); sys.stdin.read()"
    )

    def seen(**more: str) -> list[int]:
        environment = {**os.environ, "TMPDIR": str(tmp_path), **more}
        with subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stdin is not None
            process.stdout.readline()
            found = list(status.processes())
            process.stdin.close()
        return found

    assert seen() == []
    assert len(seen(VARDAG_TOP="1")) == 1
    assert list(status.processes()) == []  # it tidied up


def test_a_directory_that_others_may_enter_is_refused() -> None:
    status.directory().mkdir()
    status.directory().chmod(0o755)
    with pytest.raises(ArgumentError, match="not this user's alone"):
        serve()


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1e3, "1 kB"), (1.5e9, "1.5 GB"), (3e12, "3 TB")]
)
def test_sizes(nbytes: float, text: str) -> None:
    assert top.size(int(nbytes)) == text
