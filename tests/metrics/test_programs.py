"""Programs of strangers: their values, and that none of them reaches anything."""

import os
import re
import resource
import socket
import subprocess
import sys
import time

import pytest

from fedquilt.core.errors import ConfigError, RunError
from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.arithmetic import problems
from fedquilt.metrics import program_child, programs
from fedquilt.metrics.programs import CHILD, right_programs, run_programs


def only(program):
    (ran,) = run_programs([program])
    return ran


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("a = 2\nb = 3\nanswer = a * b", 6),
        ("import math\nanswer = math.sqrt(16)", 4),
        ("from math import *\nanswer = floor(2.5)", 2),
        ("print(3)\nprint('it is', 1200.5)", 1200.5),
        ("def half(n):\n    return n / 2\nanswer = half(5)", 2.5),
        ("answer = sum(x for x in range(5) if x % 2)", 4),
        ("rows = []\nfor n in range(3):\n    rows.append(n)\nanswer = len(rows)", 3),
        ("n = 0\nwhile n < 10:\n    n += 1\nanswer = f'{n} eggs'", 10),
        ("answer = 5 > 3\nprint(9)", None),
    ],
)
def test_a_program_has_the_value_of_its_answer_or_of_what_it_prints(program, value):
    assert only(program).value == value


def test_every_problems_own_program_is_right_and_each_has_a_process_of_its_own():
    drawn = problems(400, "test", Rng(1))
    began = time.monotonic()
    ran = run_programs([problem.program for problem in drawn])
    assert [one.value for one in ran] == [problem.answer for problem in drawn]
    assert time.monotonic() - began < 30  # about 0.6 s on a quiet machine
    assert [one.value for one in run_programs(["answer = 1", "print(len([]))", "print(answer)"])] == [1, 0, None]
    assert run_programs([]) == []


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os\nos.fork()", "imports os"),
        ("from os import fork", "imports from os"),
        ("import math, socket", "imports math"),
        ("__import__('os').fork()", "uses __import__|uses .fork"),
        ("open('x', 'w')", "ends in NameError"),
        ("exit()", "ends in NameError"),
        ("raise SystemExit", "uses Raise"),
        ("try:\n    a = 1\nexcept:\n    pass", "uses Try"),
        ("with open('x') as f: pass", "uses With"),
        ("a = ().__class__", r"uses \.__class__"),
        ("a = '{0.__class__}'.format(1)", r"uses \.format"),
        ("a = [].append.__self__", r"uses \.__self__"),
        ("def f(x=__builtins__): pass", "uses __builtins__"),
        ("from math import __loader__ as l", "uses __loader__"),
        ("f = lambda: 1", "uses Lambda"),
        ("eval('1')", "ends in NameError"),
        ("@print\ndef f(): pass", "uses a decorator"),
        ("global a\na = 1", "uses Global"),
        ("class A: pass", "uses ClassDef"),
        ("while True: pass", "runs more than 100000 lines"),
        ("while True:\n    a = 1", "runs more than 100000 lines"),
        ("a = [n for n in range(10**9)]", "runs more than 100000 lines"),
        ("a = [0] * 10**10", "ends in MemoryError"),
        ("a = 'x' * 10**10", "ends in MemoryError"),
        ("def f(n):\n    return f(n + 1)\nf(0)", "ends in RecursionError"),
        ("print('x' * 100_000)", "prints more than 10000 characters"),
        ("while True:\n    print('x')", "prints more than 10000 characters"),
        ("answer = 10 ** 5000", "ends in ValueError"),
        ("answer = float('inf')", "says no number"),
        ("a = 1", "leaves nothing in `answer` and prints nothing"),
        ("the answer is 5", "cannot be read"),
        ("a = 1\0", "cannot be read"),
        ("-" * 15_000 + "1", "cannot be read|was stopped"),
        ("a" * 30_000, "is longer than 20000 characters"),
        ("answer = 1 / 0", "ends in ZeroDivisionError"),
    ],
)
def test_what_a_program_may_not_do_gives_no_value_and_says_why(program, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    ran = only(program)
    assert ran.value is None
    assert re.search(reason, ran.reason), ran.reason
    assert time.monotonic() - began < 20
    assert list(tmp_path.iterdir()) == []


def test_one_line_that_never_ends_is_stopped_by_its_processor_time_and_the_others_go_on():
    ran = run_programs(["answer = 1", "answer = sum(range(10**12))", "answer = 2"])
    assert [one.value for one in ran] == [1, None, 2]
    assert ran[1].reason == "runs for more than 2 s"


@pytest.mark.parametrize(
    "deed",
    [
        "open('file', 'w')",
        "open('/etc/passwd')",
        "__import__('socket').socket()",
        "__import__('os').pipe()",
        "__import__('subprocess').run(['true'])",
        "bytearray(10**9)",
    ],
)
def test_the_bounds_of_the_process_hold_without_the_list_of_what_may_be_used(deed, tmp_path):
    code = (
        "import runpy, socket, subprocess, os\n"
        f"child = runpy.run_path({str(CHILD)!r})\n"
        "child['confine'](2, 256 * 2**20)\n"
        "print('confined', flush=True)\n"
        f"try:\n    {deed}\nexcept (OSError, MemoryError) as error:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.split() == ["confined", "refused"], done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="no bound on processes holds for root; the list of what may be used does")
def test_a_bounded_process_starts_no_other(tmp_path):
    code = f"import runpy, os\nrunpy.run_path({str(CHILD)!r})['confine'](2, 2**28)\nos.fork()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert "BlockingIOError" in done.stderr


def test_the_process_sees_no_environment_and_none_of_our_files(monkeypatch, tmp_path):
    seen = []
    real = subprocess.Popen

    def spy(command, **options):
        seen.append((command, options))
        return real(command, **options)

    monkeypatch.setattr(subprocess, "Popen", spy)
    with socket.socket(), (tmp_path / "open").open("w"):
        assert only("answer = 3").value == 3
    ((command, options),) = seen
    assert command[1:4] == ["-I", "-S", "-B"]
    assert options["env"] == {}
    assert options["start_new_session"] is True
    assert not os.path.exists(options["cwd"])  # made for it, and gone with it
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0  # ours is as it was


def test_a_system_that_cannot_bound_a_process_runs_nothing(monkeypatch):
    monkeypatch.setattr(programs.os, "name", "nt")
    with pytest.raises(ConfigError, match="programs run in a bounded process, which this system has not"):
        run_programs(["answer = 1"])


def test_a_process_that_cannot_run_programs_is_an_error_and_no_wrong_answer(monkeypatch, tmp_path):
    broken = tmp_path / "child.py"
    broken.write_text("raise OSError('no room')")
    monkeypatch.setattr(programs, "CHILD", broken)
    with pytest.raises(RunError, match=r"the process that runs programs ended with 1 \(OSError: no room\); look at"):
        run_programs(["answer = 1"])


def gone(group):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_an_interrupt_leaves_no_process_behind(monkeypatch):
    started = []

    class Interrupted(subprocess.Popen):
        def communicate(self, *words, timeout=None, **named):
            if timeout is None:
                return super().communicate(*words, **named)
            started.append(self)
            self.stdin.write('{"programs": ["answer = sum(range(10**12))"], "seconds": 60, "wall_seconds": 60')
            self.stdin.write(', "steps": 9, "memory": 268435456}')
            self.stdin.close()
            self.stdin = None
            time.sleep(0.5)
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_programs(["answer = 1"])
    (process,) = started
    assert process.returncode == -9
    assert gone(process.pid)  # the program's own process, too


def test_the_list_of_what_may_be_used_holds_only_names_that_are_there():
    assert all(name in dir(__builtins__) or name in __builtins__ for name in program_child.BUILTINS)
    assert not {"format", "format_map", "__class__"} & set(program_child.METHODS)
    assert not {"open", "eval", "exec", "getattr", "type", "compile", "input"} & set(program_child.BUILTINS)


def test_right_programs_are_those_of_one_value_or_one_text():
    gold = ["a = 2\nanswer = a + 3"] * 4 + ["import numpy\nanswer = 1"] * 2
    said = ["answer = 5.0", "print('5')", "answer = 6", "```python\na = 2\nanswer = a + 3\n```", "answer = 1", gold[4]]
    assert right_programs(said, gold) == [True, True, False, True, False, True]
