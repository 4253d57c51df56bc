"""What one rendering of an untrusted template may cost: steps, time, and sizes of values."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2.utils import Namespace

MAX_VALUE_CHARS = 4 * 1024 * 1024  # of any one value, and of the output: about 10^6 tokens
MAX_MADE_CHARS = 64 * MAX_VALUE_CHARS  # of all values together
MAX_STEPS = 1_000_000
MAX_CPU_S = 2.0
MAX_INTEGER_BITS = 256
MAX_DEPTH = 64


class BudgetError(Exception):
    """A template asked for more than it may have; the message says for what."""


class Budget:
    """What one rendering has used so far.

    Every value a template makes is measured before it can be multiplied further, so none can
    grow exponentially; each loop round, call, filter and test is a step on the clock.
    """

    def __init__(self) -> None:
        self._deadline_s = time.thread_time() + MAX_CPU_S
        self._steps = self._emitted = self._made = 0
        # Sizes of containers by identity. They are kept alive, so an identity stays theirs, and a
        # template cannot change them, so a size stays true.
        self._sizes: dict[int, tuple[Any, int]] = {}

    def step(self) -> None:
        """Counts one loop round, call, filter or test."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise BudgetError(f"it takes more than {MAX_STEPS} steps")
        if time.thread_time() > self._deadline_s:
            raise BudgetError(f"it takes more than {MAX_CPU_S} s")

    def emit(self, value: Any) -> str:
        """One piece of output, as text. Pieces of a macro are counted again where it is called."""
        self.step()
        self._refuse_namespace(value)
        self.allow(self.size(value))
        text = str(value)
        self._emitted += len(text)
        if self._emitted > 2 * MAX_VALUE_CHARS:
            raise BudgetError(f"its output has more than {MAX_VALUE_CHARS} characters")
        return text

    def admit(self, value: Any, is_new: bool = False) -> Any:
        """A value just made: itself, unless it is too large to be used further.

        is_new  a container's parts were made with it, and are not only referred to
        """
        self.step()
        size = self.size(value)
        self.allow(size)
        self._made += size if is_new or isinstance(value, (str, bytes)) else 8
        if self._made > MAX_MADE_CHARS:
            raise BudgetError(f"its values have more than {MAX_MADE_CHARS} characters together")
        return value

    def allow(self, chars: int) -> None:
        """Refuses a value of about `chars` characters, before or after it is made."""
        if chars > MAX_VALUE_CHARS:
            raise BudgetError(f"it makes a value of more than {MAX_VALUE_CHARS} characters")

    def rounds(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values of a loop, each round a step."""
        for value in values:
            self.step()
            yield value

    def multiply(self, left: Any, right: Any) -> None:
        """Refuses left * right where a text or list would be repeated too often."""
        for value, times in ((left, right), (right, left)):
            if isinstance(value, (str, bytes, list, tuple)) and isinstance(times, int):
                size = len(value) if isinstance(value, str) else self.size(value)
                self.allow(size * max(times, 0))

    def power(self, base: Any, exponent: Any) -> None:
        """Refuses integer powers with too many digits."""
        if isinstance(base, int) and isinstance(exponent, int):
            bits = base.bit_length() * abs(exponent)
            if abs(base) > 1 and bits > MAX_INTEGER_BITS:
                raise BudgetError(f"it makes an integer of more than {MAX_INTEGER_BITS} bits")

    def format(self, pattern: str, args: Iterable[Any]) -> None:
        """Refuses `%` and str.format whose widths or repeated arguments grow too large."""
        if re.search(r"\d{4}", pattern):
            raise BudgetError("a format pattern must not have widths of 4 digits")
        largest = 1000
        for arg in args:
            self._refuse_namespace(arg)
            width = abs(arg) if isinstance(arg, int) else 0
            largest = max(largest, width, self.size(arg))
        self.allow(len(pattern) + (pattern.count("{") + pattern.count("%")) * largest)

    def replace(self, text: Any, old: Any, new: Any) -> None:
        """Refuses a replacement that would grow a text too large."""
        text, old, new = str(text), str(old), str(new)
        self.allow(len(text) + (text.count(old) if old else len(text) + 1) * len(new))

    def indent(self, text: Any, width: Any) -> None:
        """Refuses an indentation that would grow a text too large."""
        text = str(text)
        each = len(width) if isinstance(width, str) else int(width)
        self.allow(len(text) + (len(text.splitlines()) + 1) * each)

    def join(self, separator: Any, values: Iterable[Any]) -> list[Any]:
        """The values, measured one by one, unless their joined text would be too large."""
        result, size, gap = [], 0, len(str(separator))
        for value in self.rounds(values):
            self._refuse_namespace(value)
            size += self.size(value) + gap
            self.allow(size)
            result.append(value)
        return result

    def inputs(self, values: Iterable[Any]) -> None:
        """Refuses what a filter or method could blow up: namespaces and huge numbers."""
        for value in values:
            self._refuse_namespace(value)
            if isinstance(value, int) and abs(value) > 100_000:
                raise BudgetError(f"it passes the number {value}, more than 100000")

    def _refuse_namespace(self, value: Any) -> None:
        # Its text holds all its attributes', which are not measured together.
        if isinstance(value, Namespace):
            raise BudgetError("it uses a namespace as a value; only its attributes can be used")

    def size(self, value: Any, depth: int = 0) -> int:
        """About the characters that printing it takes; a part used twice counts twice."""
        if isinstance(value, str):
            return len(value) + 2
        if isinstance(value, bytes):
            return 4 * len(value) + 3  # b'\\x00'
        if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            raise BudgetError(f"it makes an integer of more than {MAX_INTEGER_BITS} bits")
        if not isinstance(value, (dict, list, tuple)):
            return 8
        known = self._sizes.get(id(value))
        if known is not None:
            return known[1]
        if depth > MAX_DEPTH:
            raise BudgetError(f"it nests values deeper than {MAX_DEPTH} levels")
        parts = (x for pair in value.items() for x in pair) if isinstance(value, dict) else value
        size = 2
        for part in parts:
            self._refuse_namespace(part)
            size += 2 + self.size(part, depth + 1)
            if size > MAX_VALUE_CHARS:
                break
        self._sizes[id(value)] = (value, size)
        return size
