"""Rewards of tokens, learned from preferences of whole responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.binding import Rows
from pyengine.preferences.feedback import TokenTable
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.bradley_terry_fit import Array
from pyengine.preferences.sources.refitted_head import RefittedHead
from pyengine.preferences.sources.source import Gives


@dataclass(frozen=True)
class TokenGuidance(RefittedHead):
    """A linear head that rewards each token, fitted so that the means of responses' tokens explain
    labels of pairs; every call fits it anew, to all labels so far.

    Fields, errors and counts are refitted_head's; the hidden states are those of all tokens. A
    response's reward is the mean of its tokens', and the token column "token_rewards", which PPO
    takes, has each token's share of that mean. Of the paper's aggregates it is the average; its
    reward function is a model of its own.
    Source: Yang et al., arXiv:2306.00398, section 2.
    """

    name: ClassVar[str] = "token_guidance"
    gives: ClassVar[Gives] = Gives(token_columns=("token_rewards",))
    rows: ClassVar[Rows] = "tokens"

    def _token_columns(
        self, rows: Sequence[Sequence[Array]], groups: Sequence[Group], head: Array, level: float
    ) -> dict[str, TokenTable]:
        return {
            "token_rewards": [
                [
                    ((states @ head - level) / len(states)).tolist() if r.token_ids else None
                    for states, r in zip(row, group.responses, strict=True)
                ]
                for row, group in zip(rows, groups, strict=True)
            ]
        }
