"""Sources that change with what they have judged: what they learned belongs to the run's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeGuard, runtime_checkable

from pyengine.errors import CheckpointError
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group


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


@runtime_checkable
class LearnsPairs(Protocol):
    """A source with a state, which learns from the pairs that a round has learned from.

    learns  whether it does, or stays as it is
    """

    @property
    def learns(self) -> bool: ...

    def learn(self, groups: Sequence[Group], comparisons: Sequence[Comparison]) -> None:
        """At the end of a round, from its batch."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""


def has_state(source: Any) -> TypeGuard[Adapts | LearnsPairs]:
    """Whether a run has to keep what a source has learned."""
    return isinstance(source, Adapts) or (isinstance(source, LearnsPairs) and source.learns)


def moved_on(source: Any, feedback: Feedback) -> list[Callable[[], object]]:
    """The call that moves the source's state on, if it has one, for the round's end."""
    if not isinstance(source, Adapts):
        return []
    return [partial(source.load_state_dict, source.after(feedback))]


def learned(
    source: Any, groups: Sequence[Group], comparisons: Sequence[Comparison]
) -> list[Callable[[], object]]:
    """The call by which a source learns from a round's pairs, for the round's end."""
    if not isinstance(source, LearnsPairs) or not source.learns:
        return []
    return [partial(source.learn, groups, comparisons)]


def source_state(source: Any) -> dict[str, Any]:
    """{"source": its state}; empty of one that has none."""
    return {"source": source.state_dict()} if has_state(source) else {}


def load_source_state(source: Any, state: Mapping[str, Any]) -> None:
    """Raises CheckpointError where source and saved run do not both have a state."""
    if has_state(source) != ("source" in state):
        has = "a state" if "source" in state else "none"
        raise CheckpointError(f"[source] must be as in the saved run, whose source has {has}")
    if has_state(source):
        source.load_state_dict(state["source"])
