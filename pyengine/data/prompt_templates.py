"""Templates filled with a prompt and what was said to it: another prompt of the same kind."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Any

from pyengine.errors import ConfigError

_PLACE = re.compile(r"\{(prompt|response|critique)\}")


def filled(template: str, prompt: Any, **values: str) -> Any:
    """The template with {prompt}, {response} and {critique} in their places, as the prompt's kind.

    Of a chat, {prompt} is the last message's text; the filled template takes that message's place.
    What is put in is not read for places again.
    """

    def fill(of_prompt: str) -> str:
        every = values | {"prompt": of_prompt}
        return _PLACE.sub(lambda place: every[place[1]], template)

    if isinstance(prompt, str):
        return fill(prompt)
    return [*prompt[:-1], {**prompt[-1], "content": fill(prompt[-1]["content"])}]


def places(template: str) -> set[str]:
    """Which of prompt, response and critique a template has a place for."""
    return set(_PLACE.findall(template))


def check_places(who: str, field: str, template: str, needed: Set[str], known: Set[str]) -> None:
    """Raises ConfigError for a template without its places, or with others than are known."""
    found = places(template)
    if not needed <= found <= known:
        raise ConfigError(
            f"[{who}] {field} must have places for {', '.join(sorted(needed))} and none but "
            f"{', '.join(sorted(known))} but has them for {', '.join(sorted(found)) or 'nothing'}"
        )
