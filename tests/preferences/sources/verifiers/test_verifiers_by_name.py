"""Verifiers as recipes name them, with their fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences import Feedback, Group, Response
from pyengine.preferences.binding import unbound
from pyengine.preferences.sources.available import SOURCES
from pyengine.preferences.sources.source import gives
from pyengine.recipes.schema.build import make_part, part
from pyengine.recipes.schema.strict_yaml import Document

NAMES = (
    "choice", "exact_match", "json_schema", "numeric", "reasoning_gym", "regex", "unit_tests"
)  # fmt: skip


def from_recipe(data: dict[str, Any]) -> Any:
    document = Document(Path("r.yaml"), {"source": data}, {"source": 1})
    return make_part(SOURCES, part(SOURCES, data, document, "source"))


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_part_that_gives_labels(name: str) -> None:
    source = from_recipe({"name": name})
    assert source == SOURCES.make(name)
    assert gives(source).labels
    assert unbound(source) == []


def test_fields_come_from_the_recipe() -> None:
    assert from_recipe({"name": "json_schema", "answer": None}).answer is None
    source = from_recipe({"name": "numeric", "answer": "gold", "relative": 0.01, "after": "####"})
    columns = {"gold": 100}
    group = Group([1], [Response([2], text="7 #### 101"), Response([2], text="101")], None, columns)
    feedback = source([group])
    assert feedback.rewards == [[1.0, 0.0]]
    assert Feedback.from_json(feedback.to_json()) == feedback
    with pytest.raises(ConfigError, match=r"relative must be >= 0 and finite but is -1"):
        from_recipe({"name": "numeric", "relative": -1.0})
