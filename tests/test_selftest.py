"""`python -m vardag.selftest`: it finds nothing in a sound engine, and what is broken on purpose."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import textwrap
import time

import pytest

from vardag import _chaos, selftest
from vardag.engine import admission

pytestmark = pytest.mark.usefixtures("no_gc_callbacks")


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The self-test in a process of its own, without pytest, after `code`."""
    program = (
        "import sys, runpy\nsys.modules['pytest'] = None\n" + code + "\n"
        f"sys.argv[1:] = {list(arguments)!r}\nrunpy.run_module('vardag.selftest', run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_a_sound_engine_passes_in_the_time_given() -> None:
    start = time.monotonic()
    done = run("", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - start < 15  # two seconds, the start of Python, and a machine that does other things
    assert re.match(r"vardag selftest: 2 s, seed \d+, Python 3", done.stdout)
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert {"plain", "threads", "memory", "waits", "exits", "interrupts", "forks", "all"} & set(rows) >= set(
        _chaos.ROUNDS
    )
    assert int(rows["all"][0]) > 3
    assert "deviations: 0" in done.stdout


def test_a_seed_is_one_round(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["--seed", "1"]) == 0
    first = capsys.readouterr().out
    assert selftest.main(["--seed", "1"]) == 0
    second = capsys.readouterr().out
    assert re.search(r"^all +1 ", first, re.MULTILINE)
    assert [line for line in first.splitlines() if "seeds" not in line] == [
        line for line in second.splitlines() if "seeds" not in line
    ]


@pytest.mark.parametrize("what", sorted(_chaos.ROUNDS))
def test_every_kind_of_round(what: str) -> None:
    seed = next(seed for seed in range(10**6) if selftest.choose(seed)[0] == what)
    name, count = selftest.one_round(seed)
    assert name == what
    assert count.operations > 0


def without_write_after_read() -> object:
    """`Admission._admit_op` with the grant rule broken: a write no longer waits for the readers before it."""
    source = textwrap.dedent(inspect.getsource(admission.Admission._admit_op))
    line = next(x for x in source.splitlines() if "# write after read" in x)
    space: dict[str, object] = {}
    exec(source.replace(line, line.replace("if v.readers:", "if False:")), vars(admission).copy(), space)
    return space["_admit_op"]


def test_a_broken_engine_is_found_and_the_seed_shows_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(admission.Admission, "_admit_op", without_write_after_read())
        assert selftest.main(["20"]) == 1
        out = capsys.readouterr().out
        assert "DEVIATION" in out
        assert "deviations: 1" in out
        found = re.search(r"python -m vardag.selftest --seed (\d+)", out)
        assert found
        assert f"round of seed {found[1]} " in out
        assert selftest.main(["20", "--seed", found[1]]) == 1
    capsys.readouterr()
    assert selftest.main(["--seed", found[1]]) == 0


@pytest.mark.parametrize("what", sorted({"plain", "threads", "interrupts", "forks"} & set(_chaos.ROUNDS)))
def test_every_kind_of_round_compares(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = next(seed for seed in range(10**6) if selftest.choose(seed)[0] == what)
    original = _chaos.serial

    def wrong(*arguments: object) -> object:
        numbers, errors = original(*arguments)  # type: ignore[arg-type]
        return [*numbers[:-1], numbers[-1] + 1], errors

    monkeypatch.setattr(_chaos, "serial", wrong)
    monkeypatch.setattr(_chaos.os, "write", lambda *_: None)
    assert selftest.main(["--seed", str(seed)]) == 1
    assert f"seed {seed} ({what};" in capsys.readouterr().out


def test_a_hang_prints_the_stacks() -> None:
    code = (
        "import threading\nfrom vardag import _chaos\n"
        "for what in _chaos.ROUNDS: _chaos.ROUNDS[what] = lambda engine, r: threading.Event().wait()\n"
        "_chaos.HANG = 0.3"
    )
    done = run(code, "5", "--seed", "7")
    assert done.returncode == 3
    assert "HANG: the round of seed 7 " in done.stdout
    assert "--seed 7" in done.stdout
    assert done.stderr.count("Thread 0x") + done.stderr.count("thread 0x") >= 2
    assert "threading.py" in done.stderr


def test_wrong_arguments() -> None:
    with pytest.raises(SystemExit, match="2"):
        selftest.main(["soon"])


def test_a_device_is_compared_with_the_host() -> None:
    done = run("", "--device", "simulated(0)")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\d{3} calls on simulated\(0\) and on the host, deviations: 0", done.stdout)


def test_a_device_that_deviates_is_named() -> None:
    broken = "from vardag.operators import elsewhere\nelsewhere.HOST_KERNELS = frozenset()"
    done = run(broken, "--device", "simulated(0)")
    assert done.returncode == 1
    assert "DEVIATION of csr_dot" in done.stdout
