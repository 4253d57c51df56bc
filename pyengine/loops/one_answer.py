"""What a judge says, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyengine.errors import PyengineError, RewardError
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.ahead import overlaps
from pyengine.preferences.sources.source import AskedBy
from pyengine.ranks import World, current
from pyengine.ranks.dividing import balanced
from pyengine.ranks.world import together


def asked_by(source: Any) -> AskedBy:
    """Which ranks ask a source. Of a judge that waits for another machine the first alone: it has
    many questions under way, and one count of what they cost."""
    by: AskedBy = getattr(source, "asked_by", "all")
    return "first" if overlaps(source) else by


def one_answer(by: AskedBy, ask: Callable[[], Any]) -> Any:
    """What `ask` gives on rank 0, of what JSON holds, on every rank.

    by  "first": no other rank asks
    """
    world = current()
    return together(world, lambda: None if world.rank > 0 and by == "first" else ask())[0]


def divided_answer(
    world: World, groups: Sequence[Group], ask: Callable[[Sequence[Group]], Feedback]
) -> Feedback:
    """Feedback on all groups, of which each rank asks about its own.

    Where asking fails on a rank it has failed on all. Raises RewardError.
    """
    own = balanced([len(group.responses) for group in groups], world.size)[world.rank]

    def answer() -> dict[str, Any]:
        try:
            mine = ask(groups[own.start : own.stop]) if len(own) else Feedback([], [])
        except RewardError as error:
            return {"failed": str(error)}
        except PyengineError:
            raise
        except Exception as error:
            return {"failed": f"the judge raised {type(error).__name__}: {error}"}
        if not isinstance(mine, Feedback):
            return {"failed": f"the judge must give Feedback but gave {type(mine).__name__}"}
        return mine.to_json()

    said = together(world, answer)
    failed = [each["failed"] for each in said if "failed" in each]
    if failed:
        raise RewardError(failed[0])
    return Feedback.joined([Feedback.from_json(each) for each in said])


def feedback_of(source: Any, groups: Sequence[Group]) -> Feedback:
    """What a source says of groups."""
    world = current()
    if world.size == 1:
        found: Feedback = source(groups)
        return found
    by = asked_by(source)
    if by == "each":
        return divided_answer(world, groups, source)
    return Feedback.from_json(one_answer(by, lambda: source(groups).to_json()))
