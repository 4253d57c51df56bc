"""A preference model that is fitted anew, round by round, to all labels so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar, NamedTuple

import numpy as np

from pyengine.preferences.annotator_groups import grouped
from pyengine.preferences.binding import Rows, bound, check_bound
from pyengine.preferences.comparators.comparator import Compared, Duel
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus, TokenTable
from pyengine.preferences.groups import Group, Response
from pyengine.preferences.keyed_draws import content, keyed_random
from pyengine.preferences.sources.ahead import GiveUp, compare_ahead, overlaps
from pyengine.preferences.sources.bradley_terry_fit import Array
from pyengine.preferences.sources.source import Gives
from pyengine.rules import COUNT, POSITIVE, WHOLE, check_fields, checked

# A label: the prompt's tokens, two responses' tokens, P(the first is preferred).
Label = list[Any]


class _Seen(NamedTuple):
    """A label as the head sees it: who gave it, the two hidden states, the label."""

    prompt: tuple[int, ...]
    first: Array
    second: Array
    p: float


@dataclass(frozen=True)
class RefittedHead:
    """Rewards of a linear head on a frozen model's last hidden states, which every call fits anew,
    from zero, to all labels: those that a comparator gives of pairs of these responses, and those
    that a loop has taken in before.

    comparator  who labels pairs: simulated annotators, a judge
    model       whose hidden states are read, of the last token; one that stays as it is:
                "reference", a snapshot, or a model of its own by its place
    labels      pairs that are labelled of each group, drawn by lot among those that differ
    groups      of people who want different things, of unknown members: as many heads are fitted,
                see annotator_groups.grouped, a prompt's labels being one person's. Rewards are
                those of the head under which this call's responses are worst, beside all that were
                labelled
    ridge       of half the weights' squares beside the labels' mean loss, features being scaled so
                that the labelled differences are of length 1 in the mean square; > 0
    seed        with a group's tokens the key of its lots
    known       labels taken in so far, which the loop `online_rlhf` adds to and saves

    Rewards are differences from the mean of the call's, since preferences leave it open. The
    feedback's matrix has the labels of this call and nothing else. Responses without tokens
    abstain; without any label all others have failed. Counted: "labels" of this call,
    "labels_known"; of one head "foreseen", the share of this call's decided labels that the one
    fitted to the others foretold; of several "worst_group", the number of the head that counts, the
    one of most people being 0; and what the comparator counts.
    Source: a preference model refitted to fresh labels, Bai et al., arXiv:2204.05862, section 4.5;
    groups, Chakraborty et al., arXiv:2402.08925.
    """

    name: ClassVar[str] = "refitted_head"
    gives: ClassVar[Gives] = Gives()
    rows: ClassVar[Rows] = "last"  # what is read of a response
    comparator: Any = bound("comparator")
    model: Any = bound("model", "reference")
    labels: int = checked(2, COUNT)
    groups: int = checked(1, COUNT)
    ridge: float = checked(0.1, POSITIVE)
    seed: int = checked(0, WHOLE)
    known: list[Label] = field(default_factory=list, init=False, repr=False, compare=False)
    _seen: list[_Seen] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def overlaps(self) -> bool:
        """See AsksAhead."""
        return overlaps(self.comparator)

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        return compare_ahead(self.comparator, groups, self._duels(groups))

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """One call of the comparator, and the hidden states of all responses."""
        check_bound(self)
        duels = self._duels(groups)
        found: Compared = self.comparator.compare(groups, duels)
        answers = {
            duel: p for duel, p in zip(duels, found.probabilities, strict=True) if p is not None
        }
        rows = self._rows(groups)
        states = [[each.mean(axis=0) for each in row] for row in rows]
        before = self._known()
        fresh = [
            _Seen(tuple(groups[g].prompt_ids), states[g][i], states[g][j], p)
            for (g, i, j), p in answers.items()
        ]
        counts = dict(found.counts) | {
            "labels": float(len(fresh)),
            "labels_known": float(len(before) + len(fresh)),
        }
        if not before and not fresh:
            return self._without(groups, found, counts)
        shown = [s for row, group in zip(states, groups, strict=True)
                 for s, r in zip(row, group.responses, strict=True) if r.token_ids]  # fmt: skip
        if self.groups == 1 and before:
            counts |= _foreseen(self._heads(before)[0], fresh)
        head, worst = self._worst([*before, *fresh], shown)
        if self.groups > 1:
            counts["worst_group"] = float(worst)
        mean = float(head @ np.mean(shown, axis=0)) if shown else 0.0
        rewards = [
            [
                float(head @ s) - mean if r.token_ids else None
                for s, r in zip(row, group.responses, strict=True)
            ]
            for row, group in zip(states, groups, strict=True)
        ]
        return Feedback(
            rewards,
            [["abstain" if r is None else "value" for r in row] for row in rewards],
            found.errors[:MAX_ERRORS],
            {self.name: [list(row) for row in rewards]},
            preference_matrix=_matrix(groups, answers),
            counts_by_name=counts,
            token_columns=self._token_columns(rows, groups, head, mean),
        )

    def _token_columns(
        self, rows: Sequence[Sequence[Array]], groups: Sequence[Group], head: Array, level: float
    ) -> dict[str, TokenTable]:
        """Numbers of tokens beside the rewards; none here."""
        return {}

    def labelled(self, groups: Sequence[Group], feedback: Feedback) -> list[Label]:
        """The labels of a call, as its feedback has them, also where it was read from a file."""
        return [
            [list(group.prompt_ids), *(list(group.responses[k].token_ids) for k in (i, j)), p]
            for group, matrix in zip(groups, feedback.preference_matrix or (), strict=False)
            for i, j in combinations(range(len(group.responses)), 2)
            if (p := matrix[i][j]) is not None
        ]

    def _duels(self, groups: Sequence[Group]) -> list[Duel]:
        return [Duel(g, i, j) for g, group in enumerate(groups) for i, j in self._pairs(group)]

    def _pairs(self, group: Group) -> list[tuple[int, int]]:
        """Which are labelled."""
        ids = [response.token_ids for response in group.responses]
        every = [(i, j) for i, j in combinations(range(len(ids)), 2) if ids[i] and ids[j]]
        differing = [(i, j) for i, j in every if ids[i] != ids[j]]
        draw = keyed_random(self.name, self.seed, *content(group))
        return draw.sample(differing, min(self.labels, len(differing)))

    def _rows(self, groups: Sequence[Group]) -> list[list[Array]]:
        """[group][response] (rows, D), whose mean the head reads; zero without tokens, for there is
        none to read."""
        read = self.model.hidden_states(groups, pool=self.rows)
        found = [
            [None if s is None else np.atleast_2d(s.double().numpy()) for s in row] for row in read
        ]
        size = next((s.shape[1] for row in found for s in row if s is not None), 0)
        return [[np.zeros((1, size)) if s is None else s for s in row] for row in found]

    def _known(self) -> list[_Seen]:
        """The labels taken in; states of those that came since the last call are read now."""
        new = self.known[len(self._seen) :]
        pairs = [Group(prompt, [Response(a), Response(b)]) for prompt, a, b, _ in new]
        read = self._rows(pairs) if pairs else []
        self._seen.extend(
            _Seen(tuple(prompt), first.mean(axis=0), second.mean(axis=0), p)
            for (prompt, _, _, p), (first, second) in zip(new, read, strict=True)
        )
        return self._seen

    def _heads(self, seen: Sequence[_Seen]) -> list[Array]:
        d = np.stack([label.first - label.second for label in seen])
        length = float(np.sqrt(np.mean(np.sum(d * d, axis=1)))) or 1.0
        numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(s.prompt for s in seen))}
        found = grouped(
            d / length,
            np.array([label.p for label in seen]),
            [numbers[label.prompt] for label in seen],
            self.groups,
            self.ridge,
            self.seed,
        )
        return [head / length for head in found.heads]

    def _worst(self, seen: Sequence[_Seen], shown: Sequence[Array]) -> tuple[Array, int]:
        """The head under which the responses are worst, beside those that were labelled."""
        heads = self._heads(seen)
        if len(heads) == 1 or not shown:
            return heads[0], 0
        usual = np.mean([s for label in seen for s in (label.first, label.second)], axis=0)
        ahead = [float(head @ (np.mean(shown, axis=0) - usual)) for head in heads]
        worst = ahead.index(min(ahead))
        return heads[worst], worst

    def _without(
        self, groups: Sequence[Group], found: Compared, counts: dict[str, float]
    ) -> Feedback:
        """Where nothing was ever labelled."""
        status: list[list[SampleStatus]] = [
            ["error" if r.token_ids else "abstain" for r in group.responses] for group in groups
        ]
        errors = [*found.errors, f"[{self.name}] no pair has a label to fit the head to"]
        rewards: list[list[float | None]] = [[None] * len(group.responses) for group in groups]
        return Feedback(rewards, status, errors[:MAX_ERRORS], counts_by_name=counts)


def _foreseen(head: Array, fresh: Sequence[_Seen]) -> dict[str, float]:
    """The share of the labels that are no ties of which the head had the side."""
    sides = [(float(head @ (s.first - s.second)), s.p) for s in fresh if s.p != 0.5]
    right = sum((margin > 0) == (p > 0.5) for margin, p in sides)
    return {"foreseen": right / len(sides)} if sides else {}


def _matrix(groups: Sequence[Group], answers: dict[Duel, float]) -> list[list[list[float | None]]]:
    sizes = [len(group.responses) for group in groups]
    matrix: list[list[list[float | None]]] = [[[None] * n for _ in range(n)] for n in sizes]
    for (g, i, j), p in answers.items():
        matrix[g][i][j], matrix[g][j][i] = p, 1 - p
    return matrix
