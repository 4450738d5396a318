"""A script that runs programs which a model wrote, each in a process of its own; the package never imports it.

It is started by ``fedquilt.metrics.programs``, and uses the standard library alone. On standard input it is given JSON,
``{"programs": [...], "seconds": s, "wall_seconds": s, "steps": n, "memory": bytes}``; on standard output it says, for
each program, ``[value, reason]``: what the program says as text, or null and why there is nothing.

Two fences stand around a program. It may only use the small part of Python that is listed here: numbers, texts, lists,
conditions, loops, functions of its own, ``math``. And its process can open no file and no connection, start no process,
and has bounds on lines, processor time, memory and output. Neither is a kernel's sandbox.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import os
import resource
import select
import signal
import sys
import time
from types import FrameType
from typing import Any

LONGEST = 20_000
"""Characters of a program."""
MOST_PRINTED = 10_000
"""Characters that a program prints."""

BUILTINS = (
    *("abs", "all", "any", "bool", "dict", "divmod", "enumerate", "float", "int", "len", "list", "max", "min", "pow"),
    *("print", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip"),
)
METHODS = (
    *("append", "count", "extend", "get", "index", "insert", "items", "join", "keys", "pop", "remove", "replace"),
    *("reverse", "sort", "split", "strip", "values"),
    *(name for name in dir(math) if not name.startswith("_")),
)
NODES = (
    *(ast.Module, ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.If, ast.For, ast.While, ast.Break),
    *(ast.Continue, ast.Pass, ast.FunctionDef, ast.Return, ast.arguments, ast.arg, ast.Import, ast.ImportFrom),
    *(ast.alias, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Call, ast.keyword, ast.Constant),
    *(ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.ListComp),
    *(ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.JoinedStr, ast.FormattedValue, ast.Starred),
    *(ast.expr_context, ast.boolop, ast.operator, ast.unaryop, ast.cmpop),
)


class Stopped(BaseException):
    """A program went over a bound."""


def refusal(tree: ast.AST) -> str | None:
    """Why a program is not run, or None if all that it uses is on the lists."""
    for node in ast.walk(tree):
        if not isinstance(node, NODES):
            return f"uses {type(node).__name__}"
        if isinstance(node, ast.Import) and any(name.name != "math" for name in node.names):
            return f"imports {node.names[0].name}"
        if isinstance(node, ast.ImportFrom) and (node.module != "math" or node.level):
            return f"imports from {node.module}"
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            return "uses a decorator"
        if isinstance(node, ast.Attribute) and node.attr not in METHODS:
            return f"uses .{node.attr}"
        names = {getattr(node, field, None) for field in ("id", "name", "asname", "arg", "attr")}
        if hidden := next((name for name in names if isinstance(name, str) and name.startswith("__")), None):
            return f"uses {hidden}"
    return None


def said(program: str, steps: int) -> tuple[str | None, str]:
    """What a program leaves in ``answer``, or else what it prints, as text; or None and why there is nothing."""
    if len(program) > LONGEST:
        return None, f"is longer than {LONGEST} characters"
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return None, f"cannot be read ({type(error).__name__})"
    if reason := refusal(tree):
        return None, reason
    printed: list[str] = []
    left = [MOST_PRINTED, steps]

    def show(*values: object, sep: str = " ", end: str = "\n", **_: object) -> None:
        text = sep.join(map(str, values)) + end
        left[0] -= len(text)
        if left[0] < 0:
            raise Stopped(f"prints more than {MOST_PRINTED} characters")
        printed.append(text)

    def only_math(name: str, *_: object) -> Any:
        if name != "math":
            raise Stopped(f"imports {name}")
        return math

    def counted(_frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            left[1] -= 1
            if left[1] < 0:
                raise Stopped(f"runs more than {steps} lines")
        return counted

    known = {name: getattr(builtins, name) for name in BUILTINS} | {"print": show, "__import__": only_math}
    space: dict[str, Any] = {"__builtins__": known, "__name__": "program"}
    try:
        code = compile(ast.unparse(tree), "program", "exec")  # one statement a line, so that lines count steps
        sys.settrace(counted)
        try:
            exec(code, space)
        finally:
            sys.settrace(None)
        answer = space.get("answer")
        if isinstance(answer, int | float | str):
            return str(answer)[:LONGEST], ""
    except Stopped as stop:
        return None, str(stop)
    except BaseException as error:  # whatever an untrusted program raises counts as no answer
        return None, f"ends in {type(error).__name__}"
    text = "".join(printed)
    return (text, "") if text.strip() else (None, "leaves nothing in `answer` and prints nothing")


def confine(seconds: int, memory: int) -> None:
    """Bound this process for good: no new files, connections or processes, so much processor time and memory."""
    bounds = [(resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0)]
    bounds += [(resource.RLIMIT_NPROC, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 0)]
    for kind, bound in bounds:
        last = bound + (
            kind == resource.RLIMIT_CPU
        )  # the first bound on time tells why it stops, the last one stops it
        try:
            resource.setrlimit(kind, (bound, last))
        except (ValueError, OSError):
            if kind != resource.RLIMIT_AS:  # some systems bound no address space
                raise


def alone(program: str, seconds: int, wall_seconds: float, steps: int, memory: int) -> tuple[str | None, str]:
    """``said``, in a process that is bounded, and ended when its time is over.

    Parameters
    ----------
    program
        The source text.
    seconds, wall_seconds
        Bounds on processor time and on time by the clock, in seconds.
    steps
        The most lines that are run.
    memory
        The most bytes of address space.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            confine(seconds, memory)
            result = json.dumps(said(program, steps)).encode()
        except BaseException as error:  # out of memory at the very edge: nothing may return into the parent's loop
            result = json.dumps([None, f"ends in {type(error).__name__}"]).encode()
        os.write(writing, result)
        os._exit(0)
    os.close(writing)
    end, heard = time.monotonic() + wall_seconds, b""
    while select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
        part = os.read(reading, 65536)
        if not part:
            break
        heard += part
    else:
        os.kill(child, signal.SIGKILL)
        heard = b""
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if heard:
        value, reason = json.loads(heard)
        return value, reason
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return None, f"runs for more than {seconds} s"
    return None, "was stopped from outside"


def main() -> None:
    """Read what is asked, run it, say what came out."""
    asked = json.load(sys.stdin)
    programs = asked.pop("programs")
    json.dump([alone(program, **asked) for program in programs], sys.stdout)


if __name__ == "__main__":
    main()
