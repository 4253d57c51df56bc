"""Parts of a batch: what counts as an example, and in which order."""

from __future__ import annotations

from pyengine.loops.minibatches import learnable, minibatches
from pyengine.preferences import Comparison, Feedback, Group, Preferences, Response

GROUPS = [Group([g], [Response([g, 1]), Response([] if g == 1 else [g, 2])]) for g in range(3)]
FEEDBACK = Feedback.from_rewards([[1.0, 2.0], [1.0, 2.0], [None, None]])
COMPARISONS = [Comparison(0, 0, 1), Comparison(0, 1, 0, weight=0.0), Comparison(2, 0, 1)]
BATCH = Preferences(GROUPS, COMPARISONS, FEEDBACK)


def test_what_counts():
    """Response 1 of group 1 has no tokens, group 2 has no rewards, comparison 1 no weight."""
    assert learnable(BATCH, "comparison") == [0, 2]
    assert learnable(BATCH, "response") == [0, 1, 2]
    assert learnable(BATCH, "group") == [0, 1]
    unjudged = Preferences(GROUPS)
    assert learnable(unjudged, "response") == [0, 1, 2, 4, 5]


def test_the_whole_batch_stays_as_it_is():
    parts = list(minibatches(BATCH, "comparison", None, 2, 0, 0))
    assert all(part is BATCH for part in parts)
    assert len(parts) == 2


def test_epochs_go_on_where_the_last_round_ended():
    def order(first, epochs):
        groups = [Group([g], [Response([g])]) for g in range(8)]
        parts = minibatches(Preferences(groups), "group", 3, epochs, first, seed=5)
        return [[g.prompt_ids[0] for g in part.groups] for part in parts]

    assert order(0, 3) == order(0, 1) + order(1, 2)
    assert [len(part) for part in order(0, 1)] == [3, 3, 2]
    assert order(0, 1) != order(1, 1)
