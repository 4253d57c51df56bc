"""A reward that is fitted to labelled pairs on the hidden states of a frozen model, and how sure it
is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.binding import POOLS, Pool, bound, check_bound
from pyengine.preferences.feedback import Feedback, SampleStatus
from pyengine.preferences.groups import Comparison, Group, Preferences, Response
from pyengine.preferences.keyed_draws import keyed_random, keyed_uniforms
from pyengine.preferences.sources.bradley_terry_fit import Array, fitted_head
from pyengine.preferences.sources.combining import variance
from pyengine.preferences.sources.source import Gives, gives
from pyengine.rules import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SWITCH,
    WHOLE,
    Rule,
    check_fields,
    checked,
    one_of,
    or_none,
)

DROPOUT = Rule("in [0, 1)", lambda v: NOT_NEGATIVE.holds(v) and v < 1)


@dataclass(frozen=True)
class RewardProbe:
    """Bradley-Terry heads on a frozen model's hidden states, fitted to pairs, and their spread.

    The spread is over an ensemble of heads, under dropout, or both.

    rows     a file of pairs {prompt, chosen, rejected}: .jsonl or .parquet, or "packaged:NAME"; in
             Python a list of dicts
    most_rows  the first so many of them; None: all
    model    whose states are read; one that stays as it is, such as "reference"
    source   whose rewards the feedback has, so that the fitted ones say how certain they are and
             nothing else; None: the particles' mean is the reward
    pool     of a response the "last" token's hidden state, or their "mean"
    l2       pulls a head to where it began, over differences of states of mean square 1
    heads    where there are several, each counts a pair as often as a Poisson draw of mean 1 says
    prior    standard deviation of the random heads that several begin at; 0: all begin at 0
    dropout  share of a state's numbers that a pass drops; the others are divided by 1 - dropout
    passes   with dropout; pass t reads head t mod heads, and drops the same in every response
    refit    whether it is fitted anew after each round to the pairs that a loop learned from, too;
             they are part of the loop's state
    seed     of draws, priors and masks
    The particles, one a head or pass, are the columns particle_1, particle_2, ...; the column
    reward_std is their population standard deviation. A response without tokens has none, and
    abstains where there is no `source`. Counted: "pairs_fitted" of the rows, "pairs_dropped", too
    long for the model or of equal responses, and "pairs_learned".
    Raises ConfigError; DataError or RequestError for rows that hold no pairs.
    Source: an ensemble with priors, Dwaracherla et al., arXiv:2402.00396, section 4; dropout, Wang
    et al., arXiv:2409.11212, section 3.
    """

    name: ClassVar[str] = "reward_probe"
    rows: Any = bound("rows")
    model: Any = bound("model", "reference")
    most_rows: int | None = checked(None, or_none(COUNT))
    source: Any = bound("source", None)
    pool: Pool = checked("last", one_of(*POOLS))
    l2: float = checked(0.1, POSITIVE)
    heads: int = checked(1, COUNT)
    prior: float = checked(0.0, NOT_NEGATIVE)
    dropout: float = checked(0.0, DROPOUT)
    passes: int = checked(10, COUNT)
    refit: bool = checked(False, SWITCH)
    seed: int = checked(0, WHOLE)
    _memory: _Memory = field(
        default_factory=lambda: _Memory(), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.heads == 1 and self.dropout == 0:
            raise ConfigError(
                f"[{self.name}] heads must be 2 or more, or dropout greater than 0, or there is no "
                "spread"
            )
        if self.prior and self.heads == 1:
            raise ConfigError(
                f"[{self.name}] prior is of several heads but is {self.prior} with heads 1"
            )

    @property
    def particles(self) -> tuple[str, ...]:
        """Names of their columns."""
        count = self.passes if self.dropout else self.heads
        return tuple(f"particle_{t + 1}" for t in range(count))

    @property
    def gives(self) -> Gives:
        """What the source gives, and the columns."""
        own = Gives() if self.source is None else gives(self.source)
        return replace(own, columns=(*own.columns, "reward_std", *self.particles))

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """Rewards, and the particles of each response."""
        check_bound(self)
        drawn = self._particles(groups)
        feedback = self._rewards(drawn) if self.source is None else self.source(groups)

        def column(figure: Any) -> list[list[float | None]]:
            return [[None if each is None else figure(each) for each in row] for row in drawn]

        feedback.columns["reward_std"] = column(lambda each: math.sqrt(variance(each)))
        for t, name in enumerate(self.particles):
            feedback.columns[name] = column(lambda each, t=t: each[t])
        feedback.counts_by_name = {**feedback.counts_by_name, **self._fitted[2]}
        return feedback

    def _rewards(self, drawn: Sequence[Sequence[Sequence[float] | None]]) -> Feedback:
        rewards = [
            [None if each is None else math.fsum(each) / len(each) for each in row] for row in drawn
        ]
        status: list[list[SampleStatus]] = [
            ["abstain" if reward is None else "value" for reward in row] for row in rewards
        ]
        return Feedback(rewards, status, [], {self.name: [list(row) for row in rewards]})

    def _particles(self, groups: Sequence[Group]) -> list[list[list[float] | None]]:
        """[group][response][particle]; None of a response without tokens."""
        heads, scale, _ = self._fitted
        return [
            [None if state is None else (heads @ (_array(state) / scale)).tolist() for state in row]
            for row in self.model.hidden_states(groups, self.pool)
        ]

    @property
    def learns(self) -> bool:
        """See LearnsPairs."""
        return self.refit

    def learn(self, groups: Sequence[Group], comparisons: Sequence[Comparison]) -> None:
        """See LearnsPairs."""
        for c in comparisons:
            if c.weight > 0:
                responses = groups[c.group].responses
                sides = [responses[k].token_ids for k in (c.winner, c.loser)]
                self._memory.learned.append([groups[c.group].prompt_ids, *sides])

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: the pairs that were learned, in tokens."""
        return {"learned": [list(map(list, each)) for each in self._memory.learned]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; what follows from it is computed when it is asked for."""
        self._memory.forget()
        self._memory.learned = [[list(ids) for ids in each] for each in state["learned"]]

    @property
    def _fitted(self) -> tuple[Array, float, dict[str, float]]:
        """(particles, D) heads with their masks, what a state is divided by, and counts."""
        memory = self._memory
        known = len(memory.learned)
        if memory.fitted is None or memory.fitted[0] != known:
            memory.fitted = known, self._fit()
        return memory.fitted[1]

    def _fit(self) -> tuple[Array, float, dict[str, float]]:
        differences, counts = self._differences()
        scale = math.sqrt(float((differences**2).sum(1).mean())) or 1.0
        each = [self._head(m, differences / scale) for m in range(self.heads)]
        if not self.dropout:
            return np.stack(each), scale, counts
        masked = [
            each[t % self.heads] * self._mask(t, differences.shape[1]) for t in range(self.passes)
        ]
        return np.stack(masked), scale, counts

    def _differences(self) -> tuple[Array, dict[str, float]]:
        """(N, D) states of the chosen less those of the rejected: of the rows, then of what was
        learned."""
        memory = self._memory
        if memory.given is None:
            rows = list(self.rows)[: self.most_rows]
            given = Preferences.from_rows(rows, self.model, identical="drop", overlong="drop")
            if not given.comparisons:
                raise RequestError(f"[{self.name}] rows must hold pairs but none is there")
            memory.counts = {"pairs_fitted": float(len(given.comparisons))}
            if given.report is not None:
                memory.counts["pairs_dropped"] = float(given.report.rows - given.report.kept)
            memory.given = self._states_of(given.groups, given.comparisons)
        new = memory.learned[len(memory.new) :]
        if new:
            groups = [Group(p, [Response(chosen), Response(other)]) for p, chosen, other in new]
            pairs = [Comparison(g, 0, 1) for g in range(len(groups))]
            memory.new += list(self._states_of(groups, pairs))
        counts = memory.counts | ({"pairs_learned": float(len(memory.new))} if self.refit else {})
        return np.stack([*memory.given, *memory.new]), counts

    def _states_of(self, groups: Sequence[Group], comparisons: Sequence[Comparison]) -> Array:
        states = self.model.hidden_states(groups, self.pool)
        return np.stack(
            [
                _array(states[c.group][c.winner]) - _array(states[c.group][c.loser])
                for c in comparisons
            ]
        )

    def _head(self, m: int, differences: Array) -> Array:
        pairs, width = differences.shape
        if self.heads == 1:
            return fitted_head(differences, np.ones(pairs), np.zeros(width), self.l2)
        # Keyed by pair, so that what is learned later changes no weight.
        draws = [keyed_uniforms(self.name, self.seed, "weight", m, i)[0] for i in range(pairs)]
        draw = keyed_random(self.name, self.seed, "prior", m)
        start = np.array([draw.gauss(0.0, 1.0) for _ in range(width)]) * self.prior
        return fitted_head(differences, np.array([_poisson(u) for u in draws]), start, self.l2)

    def _mask(self, t: int, width: int) -> Array:
        """0 where pass t drops a place, else 1 / (1 - dropout)."""
        draw = keyed_random(self.name, self.seed, "mask", t)
        kept = np.array([draw.random() >= self.dropout for _ in range(width)], dtype=np.float64)
        return kept / (1 - self.dropout)


class _Memory:
    """What was computed, and what was learned.

    learned  [prompt, chosen, rejected] in tokens
    given    (N, D) of the rows
    new      (D,) of each that was learned and asked for since
    fitted   (pairs learned by then, what follows)
    """

    def __init__(self) -> None:
        self.learned: list[list[list[int]]] = []
        self.given: Array | None = None
        self.counts: dict[str, float] = {}
        self.forget()

    def forget(self) -> None:
        """What follows from `learned`."""
        self.new: list[Array] = []
        self.fitted: tuple[int, tuple[Array, float, dict[str, float]]] | None = None


def _poisson(uniform: float) -> float:
    """A Poisson variable of mean 1 by its distribution function."""
    count, chance = 0, math.exp(-1)
    total = chance
    while uniform >= total and count < 20:
        count += 1
        chance /= count
        total += chance
    return float(count)


def _array(state: Any) -> Array:
    return np.asarray(state.double().numpy())
