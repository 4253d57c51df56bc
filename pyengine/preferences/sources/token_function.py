"""Numbers of every token of a response, from the user's own code: see Feedback.token_columns."""

from __future__ import annotations

from collections.abc import Sequence

from pyengine.preferences.feedback import MAX_ERRORS, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.isolation import numbers_of
from pyengine.preferences.sources.reward_function import RewardFunction

TokenTable = list[list[list[float] | None]]


class TokenFunction:
    """`f(prompts, completions, completion_ids, ...) -> list[list[float] | None]`: for every
    response as many numbers as it has tokens; None abstains.

    f is called as RewardFunction calls it, and its failures are counted in the same way.
    """

    def __init__(self, function: RewardFunction) -> None:
        self.name, self.function = function.name, function

    @property
    def reads(self) -> tuple[str, ...]:
        """See RewardFunction."""
        return self.function.reads

    def __call__(
        self, groups: Sequence[Group]
    ) -> tuple[TokenTable, list[list[SampleStatus]], list[str]]:
        """([group][response][token], [group][response] statuses, the first few messages)."""
        table, status, errors = self.function.ask(groups, numbers_of)
        for g, group in enumerate(groups):
            for k, response in enumerate(group.responses):
                numbers, tokens = table[g][k], len(response.token_ids)
                if numbers is not None and len(numbers) != tokens:
                    table[g][k], status[g][k] = None, "error"
                    errors.append(
                        f"[{self.name}] groups[{g}].responses[{k}]: must return one number for "
                        f"each of {tokens} tokens but returned {len(numbers)}"
                    )
        return table, status, errors[:MAX_ERRORS]
