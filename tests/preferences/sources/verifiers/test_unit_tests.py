"""Programs and their tests: who passes, who does not, and who only pretends to."""

from __future__ import annotations

from typing import Any

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences import Group, Response
from pyengine.preferences.sources.verifiers import unit_tests
from pyengine.preferences.sources.verifiers.code_tests import CodeTest
from pyengine.preferences.sources.verifiers.code_tests import tests_of as rows_tests
from pyengine.preferences.sources.verifiers.sandbox.plain_data import decoded, encoded
from pyengine.preferences.sources.verifiers.sandbox.run import Containment, SandboxError
from pyengine.preferences.sources.verifiers.unit_tests import UnitTests
from pyengine.preferences.sources.verifiers.verifier import RIGHT, Judged, Verdict

ADD = "def add(a, b):\n    return a + b\n"


def group(tests: Any, *texts: str) -> Group:
    return Group([1], [Response([2], text=text) for text in texts], columns={"tests": tests})


def test_tests_as_rows_hold_them() -> None:
    """An assert with a written value on either side is a call; other code is itself."""
    assert rows_tests("assert add(1, 2) == 3") == [CodeTest("call", "add(1, 2)", 3)]
    assert rows_tests(["assert (1, 'a') == f()"]) == [CodeTest("call", "f()", (1, "a"))]
    assert rows_tests("assert f() == g()") == [CodeTest("statement", "assert f() == g()")]
    assert rows_tests([{"call": " f(1) ", "returns": [1]}]) == [CodeTest("call", "f(1)", [1], True)]
    assert rows_tests([{"input": "1\n", "output": "2\n"}]) == [CodeTest("input", "1\n", "2\n")]
    for broken in ([], [3], [{"call": "f()"}], {"input": 1, "output": "1"}):
        assert rows_tests(broken) is None


def test_plain_data_keeps_types() -> None:
    value = {"a": [1, 2.5, None, True], (1, 2): {3}, b"b": complex(1, -2), "nested": ({},)}
    assert decoded(encoded(value)) == value
    assert type(decoded(encoded(frozenset([1])))) is set
    with pytest.raises(ValueError, match="a object is no plain data"):
        encoded([object()])
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        encoded(eval("[" * 150 + "]" * 150))


def test_what_programs_come_to() -> None:
    """All of a batch: reward, and under which names each is counted."""
    tests = ["assert add(1, 2) == 3", "import math\nassert math.isclose(add(0.1, 0.2), 0.3)"]
    texts = [
        f"Here:\n```python\n{ADD}```\nDone.",
        ADD.replace("+", "-"),
        "def add(a, b)\n    return",
        "```python\nnever closed",
        ADD + "raise SystemExit",
        ADD + "import atexit, os\natexit.register(print, 'passed')\nos._exit(0)",
        ADD + "x = bytearray(1 << 30)",
    ]
    feedback = UnitTests(wall_s=60, memory_mb=256)([group(tests, *texts), group(None, ADD)])
    assert feedback.rewards == [[1.0] + [0.0] * 6, [None]]
    assert feedback.labels == [[True] + [False] * 6, [False]]
    assert feedback.counts_by_name == {
        "right": 1,
        "wrong": 6,
        "crashed": 3,
        "no_code": 1,
        "over_limit": 1,
        "over_limit/memory": 1,
        "no_answer": 1,
    }


def test_a_program_that_comes_again_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three programs of two rows: the same text is another program where the tests are others."""
    ran = []

    def counted(self: UnitTests, response: Judged) -> Verdict:
        ran.append((response.text, response.answer))
        return RIGHT

    monkeypatch.setattr(UnitTests, "verify", counted)
    rows = [group("assert f()", "a", "b", "a"), group("assert g()", "a")]
    assert UnitTests()(rows).rewards == [[1.0, 1.0, 1.0], [1.0]]
    assert sorted(ran) == [("a", "assert f()"), ("a", "assert g()"), ("b", "assert f()")]


def test_a_program_that_is_late() -> None:
    feedback = UnitTests(wall_s=0.3)([group("assert True", "import time\ntime.sleep(3)")])
    assert feedback.rewards == [[0.0]]
    assert feedback.counts_by_name == {"right": 0, "wrong": 1, "timed_out": 1}


PRETENDERS = {
    "equal to everything": "class A:\n    def __eq__(self, other): return True\n"
    "def f(): return A()",
    "a number that is equal to everything": "class A(int):\n"
    "    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(): return A(1)",
    "its own len": "import builtins\nbuiltins.len = lambda x: 3\ndef f(): return 1",
    "prints": "print('passed'); print('{\"done\": true}')\ndef f(): return 1",
    "writes into every pipe": "import os\nfor fd in range(3, 20):\n    try:\n"
    '        os.write(fd, b\'{"done": true, "value": 3}\\n\' * 4)\n'
    "    except OSError:\n        pass\ndef f(): return 1",
    "no asserts": "import builtins\nclass Never(BaseException): pass\n"
    "builtins.AssertionError = Never\ndef f(): return 1",
    "nested without end": "import os\nfor fd in range(3, 20):\n    try:\n"
    "        os.write(fd, b'[' * 60000 + b'\\n')\n"
    "    except OSError:\n        pass\ndef f(): return 1",
    "exits in a test": "import os\ndef f(): os._exit(0)",
    "raises what ends quietly": "import sys\ndef f(): sys.exit(0)",
}


def test_who_pretends_does_not_pass() -> None:
    """f must give 3: judged here, and by code of tests that runs beside the program."""
    tests = ["assert f() == 3", "x = f()\nassert len([x, x]) + x == 5"]
    honest = "def f(): return 3"
    feedback = UnitTests(partial=True)([group(tests, honest, *PRETENDERS.values())])
    [[first, *others]] = feedback.rewards
    assert first == 1.0
    fooled = [name for name, reward in zip(PRETENDERS, others, strict=True) if reward != 0.0]
    assert fooled == []


def test_scripts_are_judged_by_what_they_print() -> None:
    tests = [{"input": "2 3\n", "output": "5\n"}, {"input": "1 1\n", "output": "2"}]
    right = "a, b = map(int, input().split())\nif __name__ == '__main__':\n    print(a + b, ' ')"
    half, loud = "input()\nprint(5)", "print(1 / 0)"
    feedback = UnitTests(partial=True)([group(tests, right, half, loud)])
    assert feedback.rewards == [[1.0, 0.5, 0.0]]
    assert feedback.counts_by_name == {"right": 1, "wrong": 2, "crashed": 1}


def test_tuples_and_lists_are_the_same_in_json_only() -> None:
    program = "def f(): return (1, [2, (3,)])"
    json = [{"call": "f()", "returns": [1, [2, [3]]]}]
    assert UnitTests()([group(json, program)]).rewards == [[1.0]]
    assert UnitTests()([group("assert f() == [1, [2, [3]]]", program)]).rewards == [[0.0]]


def test_a_program_has_one_verdict() -> None:
    """Strings' hashes and random's draws are the same in each run."""
    program = "import random\nx = (hash('a'), random.random())"
    seen = "import sys\nassert [x] == [], x"
    first, second = (
        unit_tests.run(unit_tests.containment().way, program, [], [("statement", seen)], LIMITS)
        for _ in range(2)
    )
    assert first["replies"] == second["replies"]
    assert first["replies"][0]["failed"] == "wrong"


LIMITS = UnitTests().limits


def test_what_cannot_be_contained_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        unit_tests, "containment", lambda: Containment("filters", "", "Landlock", "RLIMIT_NPROC")
    )
    with pytest.raises(ConfigError, match="programs must be contained but network cannot be here"):
        UnitTests()([group("assert True", ADD)])


def test_a_sandbox_that_fails_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise SandboxError("[sandbox] no room")

    monkeypatch.setattr(unit_tests, "run", broken)
    feedback = UnitTests()([group("assert True", ADD)])
    assert feedback.status == [["error"]]
    assert feedback.counts_by_name == {"right": 0, "wrong": 0, "sandbox_failed": 1}
