"""Sources that change with what they have judged: what they learned belongs to the run's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

from pyengine.errors import CheckpointError
from pyengine.preferences.binding import NESTED, bound_fields
from pyengine.preferences.feedback import Feedback


@runtime_checkable
class Adapts(Protocol):
    """A source with a state, which a loop moves on at the end of each of its rounds.

    Asking it changes nothing: an evaluation, and a round that is done again, leave it as it is.
    """

    def after(self, feedback: Feedback) -> dict[str, Any]:
        """The state after a round with that feedback of its own; JSON-able. This one stays."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state. Raises CheckpointError for that of another source."""


def within(source: Any) -> Iterator[Any]:
    """The sources within a source, at any depth."""
    inner = [getattr(source, "source", None)]
    if hasattr(source, "__dataclass_fields__"):
        fields = bound_fields(source)
        inner = [getattr(source, name) for name, kind in fields.items() if kind in NESTED]
    for each in inner:
        for part in each if isinstance(each, (list, tuple)) else [each]:
            if part is not None and not isinstance(part, str):
                yield part
                yield from within(part)


def moved_on(source: Any, feedback: Feedback) -> list[Callable[[], object]]:
    """The call that moves the source's state on, if it has one, for the round's end."""
    if not isinstance(source, Adapts):
        return []
    return [partial(source.load_state_dict, source.after(feedback))]


def source_state(source: Any) -> dict[str, Any]:
    """{"source": its state}; empty of one that has none."""
    return {"source": source.state_dict()} if isinstance(source, Adapts) else {}


def load_source_state(source: Any, state: Mapping[str, Any]) -> None:
    """Raises CheckpointError where source and saved run do not both have a state."""
    if isinstance(source, Adapts) != ("source" in state):
        has = "a state" if "source" in state else "none"
        raise CheckpointError(f"[source] must be as in the saved run, whose source has {has}")
    if isinstance(source, Adapts):
        source.load_state_dict(state["source"])
