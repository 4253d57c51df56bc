"""Parts by name: what is refused, and in which words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from pyengine.errors import ConfigError
from pyengine.registry import Registry
from pyengine.rules import POSITIVE, check_fields, checked


@dataclass(frozen=True)
class Square:
    name: ClassVar[str] = "square"
    side: float = checked(1.0, POSITIVE)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Named:
    label: str
    name: ClassVar[str] = "named"


SHAPES: Registry[object] = Registry("shapes", Square, Named)


def test_parts_are_made_by_name_with_their_fields():
    assert SHAPES.make("square", side=2.0) == Square(2.0)
    assert SHAPES.names() == ["named", "square"]
    assert [cls.__name__ for cls in SHAPES] == ["Named", "Square"]
    assert "square" in SHAPES
    assert list(SHAPES.fields("square")) == ["side"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sqare", {}, "[shapes] name must be one of named, square but is 'sqare' (did you mean"),
        ("square", {"size": 1}, "[shapes] square has no option 'size'; it has side"),
        ("square", {"side": -1}, "[square] side must be > 0 and finite but is -1"),
        ("named", {}, "[shapes] named needs label"),
    ],
)
def test_what_is_wrong_is_named(name, options, message):
    with pytest.raises(ConfigError) as caught:
        SHAPES.make(name, **options)
    assert str(caught.value).startswith(message)


def test_a_name_is_one_classes():
    registry: Registry[object] = Registry("shapes", Square)
    assert registry.add(Square) is Square
    with pytest.raises(ConfigError, match="'square' is that of Square and Other"):

        @registry.add
        class Other:
            name = "square"
