"""Mutations of the engine, each of which removes one guard, and the test that must fail then.

    python tests/engine/mutants.py [name ...]

Works in copies of the tree in a temporary directory.  A guard counts as noticed only if, in the copy, the named test
passes without the mutation; the exact text to replace is there once; the mutated package can be imported; and the named
test then *fails* or runs out of time, as opposed to an error while it is collected or set up.  Prints a table, and ends
with 1 if a guard was not noticed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("engine", "ndarray", "operators", "autograd", "tests/engine", "tests/conftest.py", "pyproject.toml")
TIMEOUT = 8.0  # seconds, and four times what the slowest test takes here without a mutation: then it hangs
BESIDE = 3  # how many run at once


class Mutant(NamedTuple):
    """One guard: what it says, (file, exact text, what replaces it) ..., and the test that fails without it."""

    guard: str
    edits: tuple[tuple[str, str, str], ...]
    test: str


def one(guard: str, file: str, old: str, new: str, test: str) -> Mutant:
    return Mutant(guard, ((f"engine/{file}", old, new),), f"tests/engine/{test}")


PROMOTE = "if self._inlining is not None:\n                self._promote()\n            t ="
OWNED = "if self._T._is_owned():\n            return "

MUTANTS = {
    # ---- order
    "grant-rule": one(
        "a write waits for the readers before it",
        "admission.py", "if v.readers:  # write after read", "if False:  # write after read",
        "test_programs.py::test_many_programs_with_faults"),
    "grant-rule-inline": one(
        "... also one that could run within its push",
        "admission.py", "if not all_done(v.readers):  # write after read", "if False:",
        "test_life.py::test_inline_waits_for_readers_and_writers"),
    "cancelled-in-turn": one(
        "who waits for a cancelled operation waits until its turn has come (I2)",
        "tracker.py", "                if p.state is not DONE:\n                    count += 1",
        "                if p.state is not DONE and not p.cancelled:\n                    count += 1",
        "test_errors.py::test_cancelled_keeps_order"),
    "first-root": one(
        "of several roots the one pushed first",
        "operation.py", "(fate.root.seq, fate.distance) < (best.root.seq, best.distance)", "False",
        "test_errors.py::test_the_root_pushed_first_wins_whatever_the_schedule"),
    "poison": one(
        "an operation whose input failed is skipped",
        "tracker.py", "if p.fate is not OK:\n                best = worst", "if False:\n                best = worst",
        "test_errors.py::test_a_skipped_function_never_runs"),
    # ---- commits
    "admission-atomic": one(
        "a commit fails whole if somebody planned in between",
        "atomic.py", "((index, guard, ticket), *steps)", "steps",
        "test_proof.py::test_a_push_sees_what_came_in_while_it_looked"),
    "ticket-first": one(
        "the ticket is taken before the first look (race read-before-ticket)",
        "admission.py", "        if not commit(self._guard_p, t, queue):",
        "        self._guard_p[0] = t\n        if not commit(self._guard_p, t, queue):",
        "test_interrupts.py::test_push_at_every_checkpoint"),
    "ticket-of-the-drain": one(
        "... in the section that draws edges, too",
        "tracker.py", "            if commit(guard, t, steps) and ready",
        "            guard[0] = t\n            if commit(guard, t, steps) and ready",
        "test_proof.py::test_edges_are_drawn_once"),
    "promotion": Mutant(
        "a push from inside a kernel that runs within its push admits that kernel first (race finalizer-in-kernel)",
        (("engine/admission.py", PROMOTE, "t ="), ("engine/core.py", PROMOTE, "t =")),
        "tests/engine/test_life.py::test_push_from_inside_a_kernel"),
    "promotion-commits": one(
        "a promotion changes the operation in its commit only",
        "admission.py", "        out += ((setattr, op, name, value) for name, value in fields)\n",
        "        for name, value in fields:\n            setattr(op, name, value)\n",
        "test_attacks.py::test_push_inside_a_promotion"),
    "p-before-t": Mutant(
        "who holds T and pushes gives T away first",
        (("engine/admission.py", f"{OWNED}self._without_t(self.admit", "if False:\n            return (self.admit"),
         ("engine/core.py", f"{OWNED}self._without_t(self._push", "if False:\n            return (self._push")),
        "tests/engine/test_proof.py::test_a_push_from_inside_a_scheduling_section_lets_go_of_it"),
    # ---- completion and waits
    "wake": one(
        "a completion wakes who watches",
        "tracker.py", "for q in op.watch:", "for q in ():",
        "test_waits.py::test_a_wait_is_woken_by_the_completion"),
    "completion-before-wake": Mutant(
        "nobody is woken before the operation is DONE",
        (("engine/tracker.py", "for q in op.watch:", "for q in ():"),
         ("engine/running.py", "        op.fn = None\n        return OK",
          "        op.fn = None\n        for q in op.watch:\n            q.put(None)\n        return OK")),
        "tests/engine/test_proof.py::test_nobody_is_woken_before_the_completion"),
    "watch-all": one(
        "a worker watches all that runs for its wait",
        "waiting.py", "running if worker and running else [target]", "running[:1] if worker and running else [target]",
        "test_attacks.py::test_a_worker_watches_all_that_runs_for_it"),
    "free-again-wakes": one(
        "an operation that is free again wakes who watches it",
        "repair.py", "        steps += ((SimpleQueue.put, q, None) for q in op.watch)\n", "",
        "test_attacks.py::test_a_worker_hears_that_a_claimed_kernel_is_free_again"),
    "helping-bound": one(
        "a thread that is no worker runs atomic kernels and brief segments only",
        "waiting.py", "here_too = o.kind is ATOMIC or brief(o)", "here_too = True",
        "test_waits.py::test_a_waiting_user_thread_helps_with_needed_kernels_only"),
    # ---- event loops
    "mail-before-look": Mutant(
        "a loop that takes its mail may be called again before it looks",
        (("engine/mail.py", "        self.uncalled[:] = (None,)  # before the look: race \"mail-before-look\"\n", ""),
         ("engine/mail.py", "            self.ring()\n        with suppress(IndexError):\n",
          "            self.ring()\n        self.uncalled[:] = (None,)\n        with suppress(IndexError):\n")),
        "tests/engine/test_aio.py::test_a_completion_while_the_loop_takes_its_mail"),
    "bell-before-look": one(
        "a loop that comes to look wakes the workers that have given way to it",
        "mail.py", "                self.aside.pop().put(None)  # after", "                self.aside.pop()  # after",
        "test_aio.py::test_a_worker_gives_way_to_a_late_loop"),
    "gave-in-vain": one(
        "a worker gives way once for a call",
        "mail.py", "                    called.pop(box, None)\n", "",
        "test_aio.py::test_a_worker_that_gives_way_in_vain_goes_on"),
    "ring-before-removal": one(
        "who rings for mail takes it off the list afterwards",
        "mail.py", "            box.ring()  # first: cut here, it is still listed\n            unrung.remove(box)\n",
        "            unrung.remove(box)\n            box.ring()\n",
        "test_aio.py::test_a_ring_that_is_cut_is_made_up_for"),
    "leash": one(
        "a coroutine whose loop is closed has no runner",
        "running.py", "claim[1] = op.leash or kept", "claim[1] = kept",
        "test_aio.py::test_an_operation_whose_loop_is_closed"),
    "blocked-loop": one(
        "a wait that blocks the loop which has to run what it waits for is refused",
        "core.py", "            self._would_block_its_loop(op)", "            pass",
        "test_aio.py::test_a_wait_that_blocks_the_loop_it_needs"),
    "stand-in": one(
        "a worker that is in an event loop of its own has a stand-in",
        "aio.py", "start_new_thread(self._stand_in, (current, box))", "pass",
        "test_aio.py::test_an_await_in_a_loop_of_its_own_inside_the_only_worker"),
    "held-task": one(
        "a push that a closed loop's task is held at holds nobody",
        "held.py", "return not self.over and self.box.runs()", "return not self.over",
        "test_aio.py::test_a_held_task_of_a_closed_loop_holds_nobody"),
    "doors": one(
        "an operation that is shared ends when those have left who take part in it",
        "shared.py", "(a.door._acquire_restore, me)", "(list, ())",
        "test_shared.py::test_nothing_is_written_after_the_end"),
    "doors-at-once": one(
        "... also if an interrupt has come while a step failed",
        "running.py", "exhaust(shared.left)  # at once", "segment.blame(op); exhaust(shared.left)  #",
        "test_shared.py::test_an_interrupt_while_a_step_fails"),
    "brief-no-more": one(
        "a segment that grows while a waiting thread claims it is given back",
        "running.py", "elif fusible and here_and_now.worker is None and", "elif fusible and False and",
        "test_shared.py::test_one_that_is_brief_no_more_is_left_to_workers"),
    "pieces": one(
        "it fails if a piece is missing",
        "shared.py", "(operator.getitem, done, len(pieces) - 1)", "(list, done)",
        "test_shared.py::test_a_step_that_fails_on_an_assistant"),
    "deadlock-search": one(
        "a wait looks for itself among what it needs",
        "waiting.py", "cycle = needs(target, set(here_and_now.stack))", "cycle = None",
        "test_proof.py::test_waits_end_or_raise_within_a_second[selfish-1]"),
    "publish-before-search": one(
        "of two crossing waits the later one sees both",
        "waiting.py", "current.blocked = target  # before the search", "pass  # before the search",
        "test_proof.py::test_waits_end_or_raise_within_a_second[crossed-2]"),
    "spare-worker": one(
        "a deep stack is helped by a thread of its own",
        "waiting.py", "if worker and deep():", "if False:",
        "test_waits.py::test_nested_waits_on_one_worker"),
    # ---- claims and repair
    "repair": one(
        "an operation whose runner is gone is repaired",
        "repair.py", "        if claim is None or op.state is not RUNNING:\n            return\n", "        return\n",
        "test_interrupts.py::test_exception_at_every_checkpoint"),
    "claim-check": one(
        "who was interrupted between claim and start looks whether the operation is still its own",
        "running.py", "            if claim[0] is not token:\n                return True  # one did, before",
        "            if False:\n                return True",
        "test_attacks.py::test_a_finalizer_between_the_claim_and_the_function"),
    "worker-replaced": one(
        "a worker that two exceptions in a row have killed is replaced",
        "workers.py", "            start_new_thread(self._start_lane, (lane, me))", "            pass",
        "test_attacks.py::test_a_worker_that_is_killed_is_replaced"),
    "serial-turn": one(
        "the end of a turn wakes who left its work to it (serial engine)",
        "running.py", "            self._ring_turn()\n        return", "        return",
        "test_attacks.py::test_the_serial_turn_is_taken_over"),
    # ---- picking
    "ageing": one(
        "every 64th pick is the oldest",
        "ready.py", "if lane.picks + 1 < AGE_EVERY:", "if True:",
        "test_priority.py::test_a_low_one_among_endless_high_ones"),
    "ageing-in-chains": one(
        "... also where one operation makes the next ready",
        "running.py", " and (not lane.mixed or lane.picks + 1 < AGE_EVERY)", "",
        "test_priority.py::test_a_low_one_beside_a_chain_of_high_ones"),
    # ---- bounds
    "back-pressure": one(
        "a push over a bound is held",
        "limits.py", "        raise Full(nbytes)", "        return",
        "test_limits.py::test_held_until_there_is_room"),
    "arrival": one(
        "held pushes are admitted in the order of arrival (G2)",
        "limits.py", "if fits and first is None:", "if fits:",
        "test_limits.py::test_in_the_order_of_arrival"),
    # ---- life
    "fork-handler": one(
        "a forked child starts with new locks, and fails what was unfinished",
        "lifecycle.py", "    os.register_at_fork(after_in_child=_after_fork_in_child)", "    pass",
        "test_life.py::test_a_forked_child_starts_anew"),
    "fork-in-kernel": one(
        "a kernel that a fork cut has failed in the child (race fork-in-kernel)",
        "lifecycle.py", "if op.state is NEW and op.mark == 1:", "if False:",
        "test_exit_and_fork.py::test_fork_while_a_kernel_runs_within_its_push"),
    "fork-in-wait": one(
        "a wait inside which a handler forked is woken in the child",
        "lifecycle.py", "        for bell in op.watch:\n", "        for bell in ():\n",
        "test_engines_together.py::test_fork_inside_a_wait"),
    "fork-bounds": one(
        "what was in flight in the parent is not in flight in the child",
        "lifecycle.py", "    engine._renew_limits()", "    pass",
        "test_proof.py::test_a_forked_child_counts_from_nothing"),
    "any-turn": one(
        "if who has the turn of a serial engine waits, others run there what they wait for",
        "waiting.py", "or holder in in_wait", "or False",
        "test_engines_together.py::test_two_serial_engines_whose_turns_wait_for_each_other"),
    "starting": one(
        "a worker is one from its bootstrap on",
        "claims.py", "if thread.ident == me", "if False",
        "test_guards.py::test_a_worker_that_waits_before_it_is_one"),
    "parking": one(
        "a daemon thread that pushes while the process ends is parked",
        "admission.py", "if self._parking and threading.current_thread()", "if False and threading.current_thread()",
        "test_proof.py::test_pushes_while_the_process_ends"),
    "drained-at-exit": one(
        "... but what an operation pushes then is admitted, for exit waits for both",
        "core.py", "if self._parking and here_and_now.stack:", "if False:",
        "test_proof.py::test_pushes_while_the_process_ends"),
    "stop-in-order": one(
        "a push is either admitted before stop, or sees it",
        "core.py", "            locked(self._P, self._close_locked)", "            self._closed = True",
        "test_attacks.py::test_stop_inside_a_push"),
    # ---- schedules to order, checks, the profiler
    "fuzz-choice": one(
        "which thread goes on, with which operation, is drawn",
        "schedules.py", "choices[self._random.randrange(len(choices))]", "choices[0]",
        "test_fuzz.py::test_ready_operations_come_in_every_order"),
    "fuzz-lines": one(
        "a user's function is left between two lines",
        "schedules.py", "if self._random.random() < self._often:", "if False:",
        "test_fuzz.py::test_lines_of_two_functions_mix"),
    "fuzz-sleep": one(
        "the baton is taken from who sleeps",
        "schedules.py", "elif now - holder.seen[1] > STALL or place is None:", "elif False:",
        "test_fuzz.py::test_a_lock_of_the_user_s_is_no_deadlock"),
    "fuzz-alone": one(
        "... and from who goes on without a turn",
        "schedules.py", "and now - holder.since < ALONE:", "and True:",
        "test_fuzz.py::test_the_first_thread_may_poll_for_an_operation"),
    "fuzz-bound": one(
        "a wait ends in time though another has the baton",
        "schedules.py", "return self.end is not None and monotonic() >= self.end", "return False",
        "test_fuzz.py::test_a_timeout_is_a_timeout"),
    "check-handle": one(
        "an array that the function has not made, and not declared, is refused",
        "access.py", "return made is not None and made() is array", "return True",
        "test_check.py::test_an_array_that_is_not_declared_is_not_read"),
    "check-sentinel": one(
        "what is declared as write holds none of its sentinel afterwards",
        "access.py", "if o.mode == \"write\" and copy.left():", "if False:",
        "test_check.py::test_what_is_declared_as_write_is_wholly_written"),
    "check-compare": one(
        "what is only read is compared afterwards",
        "access.py", "elif copy.changed():", "elif False:",
        "test_check.py::test_what_is_only_read_is_not_written"),
    "check-kept": one(
        "memory that outlives its function is looked at later",
        "access.py", "                self._keep(op, o, copy.let_go())", "                copy.let_go()",
        "test_check.py::test_memory_that_is_kept_is_not_written_later"),
    "profile-bytes": one(
        "what a kernel makes is asked before it has its memory",
        "admission.py", "else (monotonic(), op.weight())", "else (monotonic(), 0)",
        "test_profiler.py::test_operations_of_every_kind"),
}  # fmt: skip


def row(name: str) -> str:
    """Its line in docs/engine-proof.md."""
    mutant = MUTANTS[name]
    file, _, test = mutant.test.removeprefix("tests/engine/").partition(".py::")
    return f"| `{name}` | {mutant.guard} | `{file}: {test.partition('[')[0]}` |"


def copy(into: Path) -> Path:
    """A copy of what the tests need, under the package's name."""
    tree = into / "vardag"
    for part in (*PARTS, *(path.name for path in ROOT.glob("*.py"))):
        target = tree / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, target)
    return tree


def python(tree: Path, *arguments: str, timeout: float) -> tuple[int | None, str]:
    """Exit code (None: it did not end) and output of Python in a copy.  Nothing that it started outlives it."""
    environment = {**os.environ, "PYTHONPATH": str(tree.parent), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "500"}
    environment.pop("VARDAG_STRESS", None)
    with tempfile.TemporaryFile("w+") as output:  # not a pipe: a forked child that hangs would keep it open
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=tree, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(0)
        return code, output.read()


def tests(tree: Path, timeout: float, *names: str) -> tuple[int | None, str]:
    """Run tests in a copy; each failure, error and pass is a line of its own."""
    options = ["-v", "-rfE", "--tb=line", "-p", "no:cacheprovider", f"--timeout={timeout:.0f}", "-x", "--durations=5"]
    return python(tree, "-m", "pytest", *options, *dict.fromkeys(names), timeout=timeout * (3 + len(names)))


def change(tree: Path, mutant: Mutant) -> str:
    """Apply it; what is wrong with it, or nothing."""
    for file, old, new in mutant.edits:
        text = (tree / file).read_text(encoding="utf-8")
        if text.count(old) != 1:
            return f"{file} has its text {text.count(old)} times"
        (tree / file).write_text(text.replace(old, new), encoding="utf-8")
    return ""


def verdict(mutant: Mutant, code: int | None, output: str) -> str:
    """Did the test itself fail?  "noticed: ...", or why this is none."""
    name = re.escape(mutant.test)
    if code == 0:
        return "SURVIVED"
    if re.search(r"^ERROR ", output, re.MULTILINE):
        return f"ERROR, not a failure of the test\n{output[-1500:]}"
    failed = re.search(rf"^FAILED {name}[^\n]* - (\w+)", output, re.MULTILINE)
    if failed:
        return f"noticed: {failed[1]}"
    if re.search(rf"^{name}", output, re.MULTILINE) and (code is None or "Timeout" in output):
        return "noticed: it hangs"
    return f"ERROR {code}\n{output[-1500:]}"


def run(mutant: Mutant, timeout: float = TIMEOUT) -> str:
    """Try one mutation in a copy of its own."""
    with tempfile.TemporaryDirectory(prefix="vardag-mutant-") as place:
        tree = copy(Path(place))
        wrong = change(tree, mutant)
        if wrong:
            return f"ERROR, {wrong}"
        code, output = python(tree, "-c", "import vardag, vardag.engine.testing", timeout=60)
        if code != 0:
            return f"ERROR, it cannot be imported\n{output[-1500:]}"
        return verdict(mutant, *tests(tree, timeout, mutant.test))


def run_all(mutants: dict[str, Mutant]) -> Iterator[tuple[str, str]]:
    """(name, verdict) of each; one line for the soundness of all tests first."""
    with tempfile.TemporaryDirectory(prefix="vardag-sound-") as place:
        code, output = tests(copy(Path(place)), 60.0, *(mutant.test for mutant in mutants.values()))
    if code != 0:
        yield "without any mutation", f"ERROR, the tests do not pass\n{output[-3000:]}"
        return
    timeout = TIMEOUT + 4 * max(
        (float(seconds) for seconds in re.findall(r"^([\d.]+)s call", output, re.MULTILINE)), default=0
    )
    with ThreadPoolExecutor(BESIDE) as pool:
        yield from zip(mutants, pool.map(lambda mutant: run(mutant, timeout), mutants.values()), strict=True)


def main(names: list[str]) -> int:
    """Print a table; the exit code."""
    unknown = [name for name in names if name not in MUTANTS]
    if unknown:
        print(f"unknown: {unknown}; there are {list(MUTANTS)}")
        return 2
    chosen = {name: MUTANTS[name] for name in names or MUTANTS}
    noticed = 0
    for name, found in run_all(chosen):
        noticed += found.startswith("noticed")
        by = MUTANTS[name].test.removeprefix("tests/engine/") if name in MUTANTS else ""
        what, _, detail = found.partition("\n")
        print(f"{name:24} {what:28} {by}{detail and chr(10)}{detail}", flush=True)
    print(f"guards: {len(chosen)}, noticed: {noticed}")
    return int(noticed != len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
