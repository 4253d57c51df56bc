"""Code: a response's program against the tests of its row, in a sandbox with limits."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.verifiers.answer_span import fenced
from pyengine.preferences.sources.verifiers.code_tests import CodeTest, tests_of
from pyengine.preferences.sources.verifiers.sandbox.limits import Limits
from pyengine.preferences.sources.verifiers.sandbox.run import SandboxError, containment, run
from pyengine.preferences.sources.verifiers.verifier import (
    TEXT,
    Judged,
    Verdict,
    Verifier,
    bad_answer,
)
from pyengine.rules import COUNT, POSITIVE, SWITCH, checked, one_of

_LANGUAGES = ("", "python", "py", "python3")


@dataclass(frozen=True)
class UnitTests(Verifier):
    """Right where the response's Python program passes all tests of its row, run in a sandbox.

    answer     the column with the tests, one or a list: code that raises, {"call", "returns"} or
               {"input", "output"} (code_tests.tests_of)
    partial    reward the share of tests passed instead of all or nothing
    wall_s     seconds for a program and its tests
    cpu_s      whole seconds of CPU, of each process
    memory_mb  MiB of address space, of each process
    processes  processes and threads at a time
    file_mb    MiB of each file, and of what is printed
    folder_mb  MiB of all files together
    workers    programs that run at the same time
    uncontained  "refuse" to run where this machine cannot contain network, files and processes,
               or "run" all the same

    The program is the last fenced block of Python, or a text without fences; it has the standard
    library. Not passed is counted as "wrong" (a test), "crashed", "timed_out", "over_limit" and
    "over_limit/<which>", or "no_code". A program that exits early has not passed. A test that
    compares with a written value is judged in our process, and only the right value passes it;
    other code of tests shares the interpreter with the program, and one that sets out to deceive
    it can. By which means it is contained, and what is not: docs/verifiers.md.
    Source: Chen et al., arXiv:2107.03374, sections 2.1 and 2.3 (functional correctness, a sandbox).
    """

    name: ClassVar[str] = "unit_tests"
    answer: str = checked("tests", TEXT)
    partial: bool = checked(False, SWITCH)
    wall_s: float = checked(10.0, POSITIVE)
    cpu_s: int = checked(5, COUNT)
    memory_mb: int = checked(512, COUNT)
    processes: int = checked(8, COUNT)
    file_mb: int = checked(4, COUNT)
    folder_mb: int = checked(32, COUNT)
    workers: int = checked(2, COUNT)
    uncontained: str = checked("refuse", one_of("refuse", "run"))

    @property
    def limits(self) -> Limits:
        """As the sandbox takes them."""
        return Limits(
            wall_s=self.wall_s,
            cpu_s=self.cpu_s,
            memory_bytes=self.memory_mb << 20,
            processes=self.processes,
            file_bytes=self.file_mb << 20,
            folder_bytes=self.folder_mb << 20,
        )

    def check(self, groups: Sequence[Group]) -> None:
        """The column must be there, and what a program could do must be contained."""
        super().check(groups)
        self.ready()

    def ready(self) -> None:
        """Raises ConfigError where programs cannot be contained on this machine."""
        missing = containment().missing
        if missing and self.uncontained == "refuse":
            raise ConfigError(
                f"[{self.name}] programs must be contained but {', '.join(missing)} cannot be "
                'here: give uncontained="run" to run them all the same'
            )

    def judge(self, responses: Sequence[Judged]) -> list[Verdict]:
        """Some programs at a time; one that comes again for the same tests is not run again."""
        places = [(each.text, id(each.answer)) for each in responses]
        different = dict(zip(places, responses, strict=True))
        with ThreadPoolExecutor(self.workers, "pyengine-code") as pool:
            verdicts = dict(zip(different, pool.map(self.verify, different.values()), strict=True))
        return [verdicts[place] for place in places]

    def verify(self, response: Judged) -> Verdict:
        """One program, in a sandbox of its own."""
        tests, program = tests_of(response.answer), fenced(response.text, _LANGUAGES)
        if tests is None:
            return bad_answer("tests of code", response.answer)
        if program is None:
            return Verdict(0.0, ("wrong", "no_code"))
        try:
            results = _results(program, tests, self.limits)
        except SandboxError as error:
            return Verdict(None, ("sandbox_failed",), str(error))
        failures = [result for result in results if result is not None]
        if not failures:
            return Verdict(1.0, ("right",))
        return Verdict(
            1 - len(failures) / len(results) if self.partial else 0.0, _counts(failures[0])
        )


def _counts(failure: dict[str, str]) -> tuple[str, ...]:
    """A program is counted once as wrong, and under what first went wrong where that is more."""
    outcome, limit = failure["failed"], failure["limit"]
    names = ("wrong",) if outcome == "wrong" else ("wrong", outcome)
    return (*names, f"{outcome}/{limit}") if limit else names


def _results(
    program: str, tests: Sequence[CodeTest], limits: Limits
) -> list[dict[str, str] | None]:
    """For each test None where it was passed, else what went wrong."""
    inputs = [test.text for test in tests if test.kind == "input"]
    questions = [(test.kind, test.text) for test in tests if test.kind != "input"]
    report = run(containment().way, program, inputs, questions, limits)
    replies = {"input": iter(report["runs"]), "other": iter(report["replies"])}
    return [
        _result(test, next(replies["input" if test.kind == "input" else "other"])) for test in tests
    ]


def _result(test: CodeTest, reply: dict[str, Any]) -> dict[str, str] | None:
    if "failed" in reply:
        return reply
    if test.kind == "statement":
        return None if reply.get("done") is True else _wrong("did not reply")
    said = reply.get("output" if test.kind == "input" else "value")
    return None if test.passed_by(said) else _wrong(f"gave {said!r:.80}")


def _wrong(message: str) -> dict[str, str]:
    return {"failed": "wrong", "limit": "", "message": message}
