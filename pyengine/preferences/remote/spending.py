"""What an endpoint's calls have cost, and the limit at which no further one begins."""

from __future__ import annotations

from dataclasses import dataclass

from pyengine.errors import SpendingLimitError


@dataclass(frozen=True)
class Usage:
    """Tokens that a call is charged for."""

    prompt_tokens: int
    completion_tokens: int


@dataclass
class Spending:
    """A running sum of dollars.

    usd_per_million_prompt_tokens, usd_per_million_completion_tokens  prices; 0: free
    limit_usd  no call begins once so much is spent; those under way end. None: no limit
    spent_usd  so far: what the endpoint metered; of a call that it did not meter the most it can
               have cost, a token for each byte of the request and as many as the answer may have
    """

    usd_per_million_prompt_tokens: float
    usd_per_million_completion_tokens: float
    limit_usd: float | None
    spent_usd: float = 0.0

    def charge(self, usage: Usage) -> float:
        """Adds a call's cost and returns it."""
        cost = (
            usage.prompt_tokens * self.usd_per_million_prompt_tokens
            + usage.completion_tokens * self.usd_per_million_completion_tokens
        ) / 1e6
        self.spent_usd += cost
        return cost

    def check(self) -> None:
        """Raises SpendingLimitError where the limit is reached."""
        if self.limit_usd is not None and self.spent_usd >= self.limit_usd:
            raise SpendingLimitError(
                f"[endpoint] spending must stay below limit_usd = {self.limit_usd:g} but "
                f"{self.spent_usd:g} is spent; what was answered is kept: raise the limit to go on"
            )
