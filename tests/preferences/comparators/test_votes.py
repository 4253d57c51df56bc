"""Judgements in words: what is parsed, the shares, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_judge import Scripted, group_of

from pyengine.errors import ConfigError
from pyengine.preferences.comparators.comparator import Duel
from pyengine.preferences.comparators.votes import Votes

TEMPLATE = "{prompt}|{a}|{b}|"


def votes(said: dict[str, list[str]], **options: Any) -> tuple[Votes, Scripted]:
    model = Scripted(said=said.__getitem__)
    return Votes(model, template=TEMPLATE, n=4, max_new_tokens=20, **options), model


def test_shares_of_both_orders() -> None:
    """3 of 4 for x first, 1 of 2 parsed for y first: (3/4 + 1/2) / 2."""
    said = {
        "p|x|y|": ["Fine. Verdict: A", "Verdict: A", "Verdict: B", "**Verdict:** A."],
        "p|y|x|": ["Verdict: A", "so Verdict: B", "who knows", "Verdict: neither"],
    }
    judge, model = votes(said)
    found = judge.compare([group_of("x", "y")], [Duel(0, 0, 1)])
    assert found.probabilities == [(3 / 4 + 1 / 2) / 2]
    assert found.counts["judgements"] == 6
    assert found.counts["unparsed"] == 2
    assert found.counts["first_place"] == 4
    assert found.counts["sampled_tokens"] == sum(len(t) for texts in said.values() for t in texts)
    assert (found.counts["both_orders"], found.counts["swap_disagreements"]) == (1, 0)
    judge, again = votes(said)
    judge.compare([group_of("z"), group_of("x", "y")], [Duel(1, 0, 1)])
    assert again.request_ids == model.request_ids  # of the question alone
    assert len(set(model.request_ids)) == 2


def test_no_verdict_where_an_order_has_none_and_ties() -> None:
    said = {
        "p|x|y|": ["Verdict: A"] * 4,
        "p|y|x|": ["?"] * 4,
        "q|x|y|": ["Verdict: C", "Verdict: C", "Verdict: C", "Verdict: A"],
        "q|y|x|": ["Verdict: C"] * 4,
    }
    judge, _ = votes(said, tie_label="C")
    groups = [group_of("x", "y"), group_of("x", "y", prompt="q")]
    found = judge.compare(groups, [Duel(0, 0, 1), Duel(1, 0, 1)])
    assert found.probabilities == [None, 0.5]
    assert found.counts["failures"] == found.counts["ties"] == 1
    assert found.errors == ["[votes] duels[0], (0, 0, 1): no judgement ends in a verdict"]


def test_where_the_verdict_stands() -> None:
    judge = Votes(tie_label="A tie")
    assert judge.verdict("Verdict: A, no: Verdict: B") == 1  # the last
    assert judge.verdict("Verdict: Alas") is None
    assert judge.verdict("Verdict: [[A]]") == 0
    assert judge.verdict("Verdict: A tie.") == 2
    assert judge.verdict("A") is None
    with pytest.raises(ConfigError, match=r"\[votes\] n must be an integer >= 1 but is 0"):
        Votes(n=0)
