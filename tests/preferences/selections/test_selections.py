"""Selections: which comparisons stay, in the order given, and what is counted of the others."""

from __future__ import annotations

import pytest

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences import Comparison, Feedback, Group, Pairs, Response
from pyengine.preferences.comparators.comparator import Compared
from pyengine.preferences.selections.annotated import Annotated
from pyengine.preferences.selections.available import SELECTIONS
from pyengine.preferences.selections.budget import Budget
from pyengine.preferences.selections.chain import Chain
from pyengine.preferences.selections.curriculum_stage import CurriculumStage
from pyengine.preferences.selections.dedupe import Dedupe
from pyengine.preferences.selections.entropy import Entropy
from pyengine.preferences.selections.margin import Margin
from pyengine.preferences.selections.random_share import RandomShare
from pyengine.recipes.schema.build import make_part, part
from pyengine.recipes.schema.strict_yaml import Document


def setting(*rewards, pairs):
    """Groups of one-token responses with these rewards, and comparisons (group, winner, loser)."""
    groups = [Group([g], [Response([k]) for k in range(len(row))]) for g, row in enumerate(rewards)]
    return (
        groups,
        Feedback.from_rewards(rewards),
        Pairs([Comparison(*p) for p in pairs], {"ties": 3}),
    )


def sides(pairs):
    return [(c.group, c.winner, c.loser) for c in pairs.comparisons]


FOUR = ((0, 1, 0), (0, 2, 0), (0, 3, 0), (0, 3, 2))  # margins 2, 3, 7, 4 of (0, 2, 3, 7)


def test_smallest_and_largest_margins():
    given = setting([0.0, 2.0, 3.0, 7.0], pairs=FOUR)
    small = Margin(share=0.5)(*given)
    assert sides(small) == [FOUR[0], FOUR[1]]
    assert small.counts == {"ties": 3, "over_budget": 2, "unknown": 0}
    assert sides(Margin(keep="large", most=3)(*given)) == [FOUR[1], FOUR[2], FOUR[3]]


def test_margins_of_a_column():
    """The implicit rewards 5, 1, -2 differ by 4 and 7, whoever is ahead; one is missing."""
    groups, feedback, pairs = setting([0.0, 2.0, 3.0, 7.0], pairs=FOUR)
    feedback.columns = {"implicit": [[5.0, 1.0, -2.0, None]]}
    found = Margin(column="implicit", most=1)(groups, feedback, pairs)
    assert sides(found) == [FOUR[0]]
    assert found.counts == {"ties": 3, "over_budget": 1, "unknown": 2}
    with pytest.raises(RequestError, match=r"\[margin\] needs 'other' of every response"):
        Margin(column="other")(groups, feedback, pairs)


def test_budgets_flat_and_decreasing():
    """Half of 8 is 4 a round; halved each round 4, 2, 1, and never less than 1; at most 3 first."""
    flat, falling, limited = Budget(share=0.5), Budget(share=0.5, decay=0.5), Budget(most=3)
    assert [flat.size(8, r) for r in range(3)] == [4, 4, 4]
    assert [falling.size(8, r) for r in range(5)] == [4, 2, 1, 1, 1]
    assert [limited.size(n, 0) for n in (0, 2, 8)] == [0, 2, 3]
    given = setting([0.0, 2.0, 3.0, 7.0], pairs=FOUR)
    found = Budget(most=2, decay=0.5)(*given, round=1)
    assert sides(found) == [FOUR[0]]
    assert found.counts["over_budget"] == 3
    with pytest.raises(ConfigError, match=r"\[budget\] decay must be in \(0, 1\] but is 0"):
        Budget(decay=0)


def test_a_random_share_is_drawn_anew_each_round():
    groups, feedback, _ = setting([0.0, 1.0], pairs=())
    many = Pairs([Comparison(0, 1, 0)] * 8)
    many.comparisons = [Comparison(0, 1, 0, weight=float(i)) for i in range(8)]

    def kept(round, seed=0):
        pairs = RandomShare(share=0.5, seed=seed)(groups, feedback, many, round)
        assert pairs.counts == {"over_budget": 4}
        return [int(c.weight) for c in pairs.comparisons]

    rounds = [kept(r) for r in range(200)]
    assert rounds == [kept(r) for r in range(200)]
    assert rounds[0] == sorted(rounds[0])
    assert kept(0) != kept(0, seed=1) or kept(1) != kept(1, seed=1)
    each = [sum(i in row for row in rounds) for i in range(8)]
    assert all(75 < n < 125 for n in each)  # 100 expected, 7 a standard deviation


def test_prompts_with_the_highest_entropy():
    """-log p: 3 and 3 of one token, 4 and 4 of four tokens; a prompt without log-probs."""
    groups = [
        Group([1], [Response([1], [-3.0]), Response([2], [-3.0])]),
        Group([2], [Response([1] * 4, [-1.0] * 4), Response([2] * 4, [-1.0] * 4)]),
        Group([3], [Response([1]), Response([2])]),
    ]
    pairs = Pairs(
        [Comparison(0, 0, 1), Comparison(1, 0, 1), Comparison(1, 1, 0), Comparison(2, 0, 1)]
    )
    feedback = Feedback.from_rewards([[1.0, 0.0]] * 3)
    high = Entropy(most=1)(groups, feedback, pairs)
    assert sides(high) == [(1, 0, 1), (1, 1, 0)]
    assert high.counts == {"over_budget": 1, "unknown": 1}
    assert sides(Entropy(most=1, per_token=True)(groups, feedback, pairs)) == [(0, 0, 1)]
    assert sides(Entropy(keep="low", share=0.5)(groups, feedback, pairs)) == [(0, 0, 1)]


def test_easy_comparisons_first():
    """Margins 7, 4, 3, 2 in three stages: two, one, one; a prompt with one comparison is easy."""
    given = setting([0.0, 2.0, 3.0, 7.0], [1.0, 0.0], pairs=(*FOUR, (1, 0, 1)))
    rule = CurriculumStage(rounds_per_stage=2)
    stages = [sides(rule(*given, round=r)) for r in range(8)]
    assert stages[0] == stages[1] == [FOUR[2], FOUR[3], (1, 0, 1)]
    assert stages[2] == stages[3] == [FOUR[1]]
    assert stages[4:] == [[FOUR[0]]] * 4
    assert rule(*given).counts == {"ties": 3, "other_stage": 2, "unknown": 0}
    assert sides(CurriculumStage(first="narrow")(*given)) == [FOUR[0], FOUR[1], (1, 0, 1)]


class Says:
    """A comparator of fixed answers."""

    name = "says"

    def __init__(self, *answers):
        self.answers = list(answers)

    def compare(self, groups, duels):
        assert len(duels) == len(self.answers)
        return Compared(self.answers, ["no answer"], {"calls": 2.0})


def test_labels_are_asked_for():
    """0.8 agrees, 0.3 turns the pair with its margin, None and 1/2 say nothing."""
    groups, feedback, pairs = setting([0.0, 2.0, 3.0, 7.0], pairs=FOUR)
    pairs.comparisons[1] = Comparison(*FOUR[1], margin=3.0, weight=0.5)
    found = Annotated(Says(0.8, 0.3, None, 0.5), soft=True)(groups, feedback, pairs)
    assert found.comparisons == [
        Comparison(0, 1, 0, probability=0.8),
        Comparison(0, 0, 2, probability=0.7, margin=-3.0, weight=0.5),
    ]
    assert found.counts == {
        "ties": 3, "asked": 4, "turned": 1, "unlabelled": 1, "undecided": 1, "label_calls": 2.0
    }  # fmt: skip
    assert found.errors == ["no answer"]
    hard = Annotated(Says(0.8, 0.3, 1.0, 0.0))(groups, feedback, pairs)
    assert {c.probability for c in hard.comparisons} == {1.0}
    assert Annotated(Says())(groups, feedback, Pairs([])).counts["asked"] == 0


def test_a_chain_asks_for_labels_of_what_is_left():
    given = setting([0.0, 2.0, 3.0, 7.0], pairs=FOUR)
    rule = Chain((Margin(most=3), Budget(most=2, decay=0.5), Annotated(Says(0.1))))
    found = rule(*given, round=1)
    assert sides(found) == [(0, 0, 1)]
    assert found.counts["over_budget"] == 3
    assert found.counts["asked"] == 1
    with pytest.raises(ConfigError, match="selections must not be empty"):
        Chain(())


def test_a_chain_in_a_recipe(tmp_path):
    """Its selections are parts within it, checked by name before anything runs."""
    document = Document(tmp_path / "recipe.yaml", {}, {})
    data = {"selections": [{"name": "margin", "most": 3}, "dedupe"], "name": "chain"}
    made = make_part(SELECTIONS, part(SELECTIONS, data, document, "selection"))
    assert made == Chain((Margin(most=3), Dedupe()))
    for wrong, message in (
        ("margin", r"selection.selections must be a list of selections but is"),
        ([{"name": "margin", "most": 0}], r"most must be an integer >= 1, or None but is 0"),
        ([], r"\[chain\] selections must not be empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            part(SELECTIONS, {"name": "chain", "selections": wrong}, document, "selection")


@pytest.mark.parametrize("name", [n for n in SELECTIONS.names() if n not in ("chain", "annotated")])
def test_every_selection_of_nothing(name):
    groups, feedback, _ = setting([1.0, 0.0], pairs=())
    feedback.columns = {"reward_std": [[1.0, 1.0]]}
    found = SELECTIONS.make(name)(groups, feedback, Pairs([], {"ties": 1}))
    assert found.comparisons == []
    assert found.counts.pop("ties") == 1
    assert set(found.counts.values()) == {0}
