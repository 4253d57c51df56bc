"""Fields of parts (objectives, pairings, ...) that are checked when one is made, each by a rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from pyengine.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value must be, in words and as a test of it."""

    text: str
    holds: Callable[[Any], bool]


def _number(test: Callable[[float], bool]) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and math.isfinite(value) and test(value)

    return holds


POSITIVE = Rule("> 0 and finite", _number(lambda v: v > 0))
NOT_NEGATIVE = Rule(">= 0 and finite", _number(lambda v: v >= 0))
FINITE = Rule("finite", _number(lambda v: True))
ABOVE_ONE = Rule("> 1 and finite", _number(lambda v: v > 1))
FLIP_RATE = Rule("in [0, 0.5)", _number(lambda v: 0 <= v < 0.5))
FRACTION = Rule("in [0, 1]", _number(lambda v: 0 <= v <= 1))
OPEN_FRACTION = Rule("in (0, 1)", _number(lambda v: 0 < v < 1))
OPEN_HALF = Rule("in (0, 0.5)", _number(lambda v: 0 < v < 0.5))
SHARE = Rule("in (0, 1]", _number(lambda v: 0 < v <= 1))
WHOLE = Rule("an integer >= 0", lambda v: type(v) is int and v >= 0)
COUNT = Rule("an integer >= 1", lambda v: type(v) is int and v >= 1)
SWITCH = Rule("True or False", lambda value: isinstance(value, bool))


def one_of(*names: Any) -> Rule:
    """The value is one of these."""
    return Rule(f"one of {', '.join(map(str, names))}", lambda value: value in names)


def or_none(rule: Rule) -> Rule:
    """The value is None or follows the rule."""
    return Rule(f"{rule.text}, or None", lambda value: value is None or rule.holds(value))


def checked(default: Any, rule: Rule) -> Any:
    """A field of a part, which is a frozen dataclass; it is checked by `check_fields`."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def check_fields(part: Any) -> None:
    """Raises ConfigError naming the first field that breaks its rule."""
    for field in dataclasses.fields(part):
        rule, value = field.metadata.get("rule"), getattr(part, field.name)
        if rule is not None and not rule.holds(value):
            raise ConfigError(f"[{part.name}] {field.name} must be {rule.text} but is {value!r}")
