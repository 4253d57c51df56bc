"""A turn's reward and those of the turns after it."""

from __future__ import annotations

import pytest

from pyengine.errors import RequestError
from pyengine.preferences import Feedback, Group, Response
from pyengine.preferences.sources.rewards_to_go import RewardsToGo


def group(*values, rest=None):
    """Responses of one token, which is their reward; `rest` has those of the turns after each."""
    found = Group([1], [Response([v]) for v in values])
    if rest is not None:
        found.columns["rest"] = [[group(v) for v in after] for after in rest]
    return found


def by_token(groups):
    """9 has failed, 8 abstains; all are asked about at once."""
    by_token.calls += 1
    tokens = [[r.token_ids[0] for r in g.responses] for g in groups]
    rewards = [[None if t > 7 else float(t) for t in row] for row in tokens]
    states = {9: "error", 8: "abstain"}
    return Feedback(rewards, [[states.get(t, "value") for t in row] for row in tokens])


by_token.calls = 0


def test_later_turns_are_added_at_a_discount():
    """2 + 4/2 + 6/4 and 1 + 0 + 4/4; a group without a dialogue has its own rewards."""
    by_token.calls = 0
    groups = [group(2, 1, rest=[[4, 6], [0, 4]]), group(5, 3)]
    feedback = RewardsToGo(by_token, discount=0.5)(groups)
    assert feedback.rewards == [[5.5, 2.0], [5.0, 3.0]]
    assert feedback.counts_by_name == {"broken_off": 0.0}
    assert by_token.calls == 1


def test_what_failed_abstained_or_broke_off_has_no_sum():
    rest = [[1, 1], [9, 1], [8, 1], [1], [8, 9]]
    feedback = RewardsToGo(by_token)([group(1, 1, 1, 1, 1, rest=rest)])
    assert feedback.rewards == [[3.0, None, None, None, None]]
    assert feedback.status == [["value", "error", "abstain", "error", "error"]]
    assert feedback.counts_by_name["broken_off"] == 1.0


def test_a_column_of_another_form_is_named():
    bad = group(1, 2)
    bad.columns["rest"] = [[]]
    with pytest.raises(RequestError, match=r"groups\[1\].columns\['rest'\] must have a list of gr"):
        RewardsToGo(by_token)([group(1), bad])
