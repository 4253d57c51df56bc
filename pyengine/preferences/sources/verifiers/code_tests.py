"""Tests of a program as rows hold them: statements, calls and their values, inputs and outputs."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pyengine.preferences.sources.verifiers.sandbox.plain_data import decoded

Kind = Literal["statement", "call", "input"]


@dataclass(frozen=True)
class CodeTest:
    """One test of a program.

    kind      "statement": code that raises where the program is wrong. "call": an expression and
              its value. "input": what the program reads and what it prints
    text      the code, or the input
    expected  the value or the output; it never leaves this process
    of_json   the value came from JSON, which has no tuples: tuples and lists are the same
    """

    kind: Kind
    text: str
    expected: Any = None
    of_json: bool = False

    def passed_by(self, said: Any) -> bool:
        """Whether a program's reply, as data, is the expected one. Statements judge themselves."""
        if self.kind == "input":
            return _lines(said) == _lines(self.expected)
        try:
            value = decoded(json.loads(said))
            if self.of_json:
                return bool(_without_tuples(value) == _without_tuples(self.expected))
            return bool(value == self.expected)
        except (ValueError, TypeError, RecursionError, OverflowError):
            return False  # nothing that an honest program could have sent


def tests_of(answer: Any) -> list[CodeTest] | None:
    """The tests of a row, one or a list; None where it holds none, or something else.

    A text is a statement; `assert f(2) == 3` is taken as the call f(2) with the value 3, so that it
    is judged here. {"call": "f(2)", "returns": 3} and {"input": "2\\n", "output": "3\\n"} say so.
    """
    given = list(answer) if isinstance(answer, (list, tuple)) else [answer]
    tests = [_test(each) for each in given]
    return [test for test in tests if test is not None] if tests and None not in tests else None


def _test(given: Any) -> CodeTest | None:
    if isinstance(given, str):
        return _asserted(given) or CodeTest("statement", given)
    if not isinstance(given, Mapping):
        return None
    if set(given) == {"call", "returns"} and isinstance(given["call"], str):
        return CodeTest("call", given["call"].strip(), given["returns"], of_json=True)
    if set(given) == {"input", "output"} and all(isinstance(v, str) for v in given.values()):
        return CodeTest("input", given["input"], given["output"])
    return None


def _asserted(text: str) -> CodeTest | None:
    """The call and value of `assert call == value`, in either order; None for other code."""
    try:
        [node] = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(node, ast.Assert) or not isinstance(node.test, ast.Compare):
        return None
    sides = [node.test.left, *node.test.comparators]
    if len(sides) != 2 or not isinstance(node.test.ops[0], ast.Eq):
        return None
    for call, value in (sides, sides[::-1]):
        code = ast.get_source_segment(text, call)
        try:
            return CodeTest("call", code or ast.unparse(call), ast.literal_eval(value))
        except (ValueError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _lines(text: str) -> list[str]:
    """Without blanks at the ends of lines and empty lines at the end."""
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip("\n").split("\n")


def _without_tuples(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_without_tuples(each) for each in value]
    if isinstance(value, dict):
        return {k: _without_tuples(v) for k, v in value.items()}
    return value
