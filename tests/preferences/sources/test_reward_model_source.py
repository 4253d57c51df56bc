"""A reward model as a source: rewards, ensembles, and who beats whom."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pyengine.errors import ConfigError, RequestError
from pyengine.objectives.core.reward_losses import gpm_score
from pyengine.preferences import AllPairs, Feedback, Group, Response, RewardModelSource


class Fixed:
    """A model whose outputs are given."""

    def __init__(self, outputs: int, rows: Sequence[Sequence[Any]], reading: Any = None) -> None:
        self.outputs = outputs
        self.reading = "reward" if outputs == 1 else reading
        self._rows = rows

    def rewards(self, groups: Sequence[Group]) -> list[list[Tensor]]:
        return [[torch.tensor(value) for value in row] for row in self._rows]


def group(*lengths: int) -> Group:
    return Group([1], [Response([7 + k] * n) for k, n in enumerate(lengths)])


def test_one_reward_each_and_none_for_an_empty_response() -> None:
    feedback = RewardModelSource(Fixed(1, [[0.5, -2.0, 1.0], [3.0]]))([group(2, 1, 0), group(1)])
    assert feedback.rewards == [[0.5, -2.0, None], [3.0]]
    assert feedback.status == [["value", "value", "abstain"], ["value"]]
    assert feedback.preference_matrix is None
    assert feedback.metrics()["rewards/reward_model/mean"] == 0.5
    assert [(c.winner, c.loser) for c in AllPairs()([group(2, 1, 0)], Feedback(
        feedback.rewards[:1], feedback.status[:1])).comparisons] == [(0, 1)]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2.0),
        ({"combine": "mean"}, 2.0),
        ({"combine": "min"}, 1.0),
        ({"combine": "mean_minus_variance"}, 2 - 2 / 3),
        ({"combine": "mean_minus_variance", "penalty": 0.5}, 2 - 0.5 * 2 / 3),
    ],
)
def test_ensembles(options: Any, expected: float) -> None:
    """Rewards 1, 2, 3: mean 2, least 1, variance 2/3."""
    source = RewardModelSource(Fixed(1, [[[1.0, 2.0, 3.0]]]), **options)
    assert source([group(1)]).rewards == [[pytest.approx(expected)]]


def test_gpm_gives_a_matrix_and_mean_win_rates() -> None:
    """Embeddings at 0, 120 and 240 degrees: each beats the next by s = sin 120 = sqrt(3) / 2.

    With tau = 1, P = sigmoid(sqrt(3) / 2); each wins one and loses one, so that all have 1/2.
    """
    angles = [0.0, 2 * math.pi / 3, 4 * math.pi / 3]
    rows = [[[math.cos(a), math.sin(a)] for a in angles]]
    feedback = RewardModelSource(Fixed(2, rows, "gpm"), tau=1.0)([group(1, 1, 1)])
    p = 1 / (1 + math.exp(-math.sqrt(3) / 2))
    matrix = torch.tensor(feedback.preference_matrix[0])
    expected = torch.tensor([[0.5, p, 1 - p], [1 - p, 0.5, p], [p, 1 - p, 0.5]])
    torch.testing.assert_close(matrix, expected)
    assert feedback.rewards[0] == pytest.approx([0.5] * 3)
    torch.testing.assert_close(matrix + matrix.T, torch.ones(3, 3))


def test_gpm_of_rewards_and_one_is_bradley_terry() -> None:
    """v = (r, 1): P = sigmoid((r_i - r_j) / tau), here (2 - 1/2) / 2; the empty third takes no
    part, a lone response is 1/2.
    """
    model = Fixed(2, [[[2.0, 1.0], [0.5, 1.0], [9.0, 1.0]], [[4.0, 1.0]]])
    feedback = RewardModelSource(model, reading="gpm", tau=2.0)([group(1, 1, 0), group(1)])
    p = 1 / (1 + math.exp(-0.75))
    assert feedback.rewards[0][:2] == [pytest.approx(p), pytest.approx(1 - p)]
    assert feedback.rewards[0][2] is None
    assert feedback.preference_matrix[0][2] == [None] * 3  # no made-up cells
    assert (feedback.rewards[1], feedback.preference_matrix[1]) == ([0.5], [[0.5]])


@pytest.mark.parametrize("planes", [1, 2, 5])
def test_all_pairs_of_a_group_take_one_call_and_keep_their_bits(
    planes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(planes)
    rows = [torch.randn(n, 2 * planes, generator=generator) * 3 for n in (9, 1, 4)]
    model = Fixed(2 * planes, [r.tolist() for r in rows], "gpm")
    groups = [group(*[1] * 9), group(0), group(1, 0, 1, 1)]
    calls: list[int] = []

    def counted(first: Tensor, second: Tensor) -> Tensor:
        calls.append(len(first))
        return gpm_score(first, second)

    monkeypatch.setattr(f"{RewardModelSource.__module__}.gpm_score", counted)
    matrices = RewardModelSource(model, tau=0.3)(groups).preference_matrix
    assert calls == [81, 9]
    for given, row, matrix in zip(groups, rows, matrices, strict=True):
        skipped = [not r.token_ids for r in given.responses]
        for i, j in itertools.product(range(len(row)), repeat=2):
            score = gpm_score(row[i][None].double(), row[j][None].double())
            alone = float(torch.sigmoid(score / 0.3))
            known = 0.5 if i == j else alone
            assert matrix[i][j] == (None if skipped[i] or skipped[j] else known)


def test_probabilities_that_are_zero_and_one() -> None:
    rows = [[[1e4, 1.0], [-1e4, 1.0]]]
    feedback = RewardModelSource(Fixed(2, rows, "gpm"))([group(1, 1)])
    assert feedback.preference_matrix == [[[0.5, 1.0], [0.0, 0.5]]]


def test_mean_variance_reads_the_mean() -> None:
    source = RewardModelSource(Fixed(2, [[[1.5, 9.0]]]), reading="mean_variance")
    assert source([group(1)]).rewards == [[1.5]]


def test_outputs_that_are_not_finite_are_errors() -> None:
    feedback = RewardModelSource(Fixed(1, [[1.0, float("nan")]]), label="judge")([group(1, 1)])
    assert feedback.rewards == [[1.0, None]]
    assert feedback.status == [["value", "error"]]
    assert feedback.errors == ["[judge] groups[0].responses[1]: the model's output is not finite"]


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        (2, {"tau": 0.0, "reading": "gpm"}, "tau must be > 0 and finite, or None but is 0.0"),
        (1, {"combine": "max"},
         "combine must be one of mean, min, mean_minus_variance, or None but is 'max'"),
        (1, {"penalty": -1, "combine": "mean_minus_variance"}, 
         "penalty must be >= 0 and finite, or None but is -1"),
        (1, {"reading": "elo"}, "reading must be one of ('reward', 'gpm', 'mean_variance') but is"),
        (2, {"reading": "reward"}, "reading must fit a head of 2 outputs but is 'reward'"),
        (3, {"reading": "gpm"}, "reading must fit a head of 3 outputs but is 'gpm'"),
        (2, {}, "reading must be one of ('reward', 'gpm', 'mean_variance') for a head of 2 outputs "
                "whose folder does not say what they mean, but is None"),
        (2, {"reading": "gpm", "combine": "min"},
         "combine is used where reading is 'reward' but is 'min' with reading 'gpm'"),
        (2, {"reading": "mean_variance", "combine": "mean"},
         "combine is used where reading is 'reward' but is 'mean' with reading 'mean_variance'"),
        (2, {"reading": "gpm", "penalty": 0.5},
         "penalty is used where combine is 'mean_minus_variance' but is 0.5 with reading 'gpm'"),
        (1, {"combine": "min", "penalty": 0.5},
         "penalty is used where combine is 'mean_minus_variance' but is 0.5"),
        (1, {"tau": 1.0}, "tau is used where reading is 'gpm' but is 1.0"),
    ],
)  # fmt: skip
def test_settings(outputs: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RewardModelSource(Fixed(outputs, []), **options)
    assert str(caught.value).startswith(f"[reward_model] {message}")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[[0.5]]], "must be square for each group, [2] responses a group, but has rows of [[1]]"),
        ([[[0.5, 1.2], [0, 0.5]]], "[0][0][1] must be in [0, 1] but is 1.2"),
        ([[[0.5, float("nan")], [0, 0.5]]], "[0][0][1] must be in [0, 1] but is nan"),
    ],
)
def test_matrices_that_are_none(matrix: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Feedback([[1.0, 2.0]], [["value", "value"]], preference_matrix=matrix)
    assert (
        str(caught.value)
        .replace("preference_matrix ", "preference_matrix")
        .startswith(f"[Feedback] preference_matrix{message}")
    )
