"""Dropout on the last hidden state: the arithmetic by hand, and masks that know no batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.philox_uniform import philox_uniform
from torch import Tensor

import pyengine as pe
from pyengine.errors import ConfigError
from pyengine.preferences import AllPairs, Gives, Group, McDropout, Response
from pyengine.preferences.selections.uncertainty import Uncertainty


class Fixed:
    """Hidden states that are given, under a head (1, 2, 3, 4)."""

    outputs = 1

    def __init__(self, *states: list[float], heads: int = 1) -> None:
        self._states = [torch.tensor(state) for state in states]
        self._heads = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0]])[:heads]

    @property
    def head_weight(self) -> Tensor:
        return self._heads

    def states(self, groups: Any) -> list[list[Tensor]]:
        rows = iter(self._states)
        return [[next(rows) for _ in group.responses] for group in groups]


def kept(seed: int, t: int, p: float) -> list[float]:
    """Of each of four places: 0 where pass t drops it, else 1 / (1 - p)."""
    drawn = [philox_uniform(seed, 0, t, place) for place in range(4)]
    return [1 / (1 - p) if u >= p else 0.0 for u in drawn]


def group(*lengths: int) -> Group:
    return Group([1], [Response([7 + k] * n) for k, n in enumerate(lengths)])


def test_the_arithmetic_by_hand() -> None:
    """r_t = sum_d w_d h_d m_td / (1 - p): states (1, 1, 1, 1) and (0, 0, 0, 1)."""
    model = Fixed([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0], [9.0] * 4)
    source = McDropout(model, p=0.5, passes=3, seed=8)
    feedback = source([group(1, 1, 0)])
    masks = [kept(8, t, 0.5) for t in range(3)]
    first = [sum(w * m for w, m in zip((1, 2, 3, 4), mask, strict=True)) for mask in masks]
    second = [4 * mask[3] for mask in masks]
    assert len(set(first)) > 1
    assert feedback.rewards == [
        [pytest.approx(sum(first) / 3), pytest.approx(sum(second) / 3), None]
    ]
    assert feedback.status == [["value", "value", "abstain"]]
    mean = sum(first) / 3
    spread = math.sqrt(sum((r - mean) ** 2 for r in first) / 3)
    assert feedback.columns["reward_std"][0][0] == pytest.approx(spread)
    assert feedback.columns["pass_2"] == [[first[1], second[1], None]]
    p = sum(1 / (1 + math.exp(b - a)) for a, b in zip(first, second, strict=True)) / 3
    [matrix] = feedback.preference_matrix
    assert matrix[0] == [0.5, pytest.approx(p), None]
    assert matrix[1][0] == pytest.approx(1 - p)
    assert matrix[2] == [None] * 3
    assert source.gives == Gives(matrix=True, columns=("reward_std", "pass_1", "pass_2", "pass_3"))


def test_heads_take_turns_and_equal_states_are_never_told_apart() -> None:
    """Under the second head, the first's negative, pass 2 gives minus what it gave."""
    states = ([1.0, 2.0, 0.0, 1.0], [1.0, 2.0, 0.0, 1.0])
    one, two = (McDropout(Fixed(*states, heads=h), p=0.25, passes=4)([group(1, 1)]) for h in (1, 2))
    for t in range(4):
        [row], [other] = one.columns[f"pass_{t + 1}"], two.columns[f"pass_{t + 1}"]
        assert other == [value * (-1) ** t for value in row]
    assert one.preference_matrix == two.preference_matrix == [[[0.5, 0.5], [0.5, 0.5]]]


def test_a_selection_reads_the_passes_as_particles() -> None:
    """BALD in bits: H(mean_t p_t) - mean_t H(p_t), p_t = sigmoid(r_t0 - r_t1); weights 1 - BALD."""
    model = Fixed([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.2])
    source, groups = McDropout(model, p=0.5, passes=4, seed=8), [group(1, 1)]
    feedback = source(groups)
    [first, second] = ([feedback.columns[t][0][k] for t in source.particles] for k in (0, 1))
    p = [1 / (1 + math.exp(b - a)) for a, b in zip(first, second, strict=True)]

    def bits(q: float) -> float:
        return -q * math.log2(q) - (1 - q) * math.log2(1 - q)

    bald = bits(sum(p) / 4) - sum(map(bits, p)) / 4
    assert bald > 0.05
    chooses = Uncertainty(particles=source.particles, weigh=True)
    [kept] = chooses(groups, feedback, AllPairs()(groups, feedback)).comparisons
    assert kept.weight == pytest.approx(1 - bald)


def test_states_that_are_not_finite_are_errors() -> None:
    feedback = McDropout(Fixed([math.nan] * 4, [1.0] * 4))([group(1, 1)])
    assert feedback.status == [["error", "value"]]
    assert feedback.errors == [
        "[mc_dropout] groups[0].responses[0]: the model's output is not finite"
    ]


def test_a_reward_models_masks_and_bits_know_no_batch(tiny_model: Path) -> None:
    model = pe.RewardModel.from_pretrained(tiny_model, dtype="float32", seed=3)
    groups = [
        Group([5, 6, 7], [Response([9, 10]), Response([11])]),
        Group([5, 6], [Response([9, 10, 12, 13])]),
    ]
    states, rewards = model.states(groups), model.rewards(groups)
    for row, expected in zip(states, rewards, strict=True):
        for state, reward in zip(row, expected, strict=True):
            torch.testing.assert_close(model.head_weight[0] @ state, reward)
    source = McDropout(model, p=0.2, passes=5, seed=1)
    together = source(groups)
    alone = [source([Group(g.prompt_ids, [r])]) for g in groups for r in g.responses]
    for name in ("reward_std", "pass_5"):
        flat = [value for row in together.columns[name] for value in row]
        assert flat == [each.columns[name][0][0] for each in alone]
    assert [r for row in together.rewards for r in row] == [each.rewards[0][0] for each in alone]
    assert McDropout(model, p=0.2, passes=5, seed=2)(groups).rewards != together.rewards
    # Few passes of little dropout are near what the model says without.
    calm = McDropout(model, p=1e-9, passes=2)(groups)
    torch.testing.assert_close(
        torch.tensor(calm.rewards[0]), torch.stack(rewards[0]), check_dtype=False
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"p": 1.0}, "p must be in (0, 1) but is 1.0"),
        ({"passes": 1}, "passes must be an integer >= 2 but is 1"),
        ({"seed": 1 << 63}, "seed must be below 2^63"),
        ({"model": object()}, "model must have hidden states and a head, as RewardModel, but is"),
    ],
)
def test_settings_of_dropout(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        McDropout(**({"model": "models/reward"} | fields))
    assert str(caught.value).startswith(f"[mc_dropout] {message}")


def test_two_outputs_are_no_reward_and_a_name_is_no_model() -> None:
    model = Fixed()
    model.outputs = 2
    with pytest.raises(ConfigError, match="a head of one output but has 2"):
        McDropout(model)
    named = McDropout("models/reward", passes=2)
    assert named.gives.columns == ("reward_std", "pass_1", "pass_2")
    with pytest.raises(ConfigError, match="give the object"):
        named([group(1)])
