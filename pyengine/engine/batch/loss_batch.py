"""What an update learns from, as an objective takes it: the responses that count, in the order of
groups and responses, and everything that is known about them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pyengine.engine.batch.packing import Tree, check_tree
from pyengine.errors import RequestError
from pyengine.objectives.core.objective import LossInputs, Objective
from pyengine.preferences.feedback import SampleStatus
from pyengine.preferences.groups import Comparison, Group, Preferences


@dataclass
class LossBatch:
    """A whole batch: T trees with S responses in all, each counted through the batch.

    What is asked for every part of it is summed up once: it is not to be changed.

    trees        the groups that count, each with only the responses that do
    starts       (T + 1) the first response of each tree
    comparisons  in the order of trees, with `group` a tree, and winner and loser counted through
                 the batch
    auxiliary    of each comparison, the further responses that it takes, counted alike
    weight       of each comparison, response or tree: the objective's unit
    columns      name -> (S,) float64 numbers of the responses; NaN where there is none
    token_columns  name -> (N,) float64 numbers of the tokens; NaN where a response has none
    sampled      (N,) float32 log-probs that they were sampled with; None where not all have them
    """

    trees: list[Tree]
    starts: list[int]
    comparisons: list[Comparison]
    auxiliary: list[list[int]]
    weight: list[float]
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    token_columns: Mapping[str, Tensor] = field(default_factory=dict)
    sampled: Tensor | None = None

    @cached_property
    def _token_ids(self) -> Tensor:
        ids = [i for tree in self.trees for r in tree.responses for i in r]
        return torch.tensor(ids, dtype=torch.int64)

    @cached_property
    def total_weight(self) -> float:
        """Sum of the weights."""
        return sum(self.weight)

    @property
    def total_tokens(self) -> int:
        """Response tokens."""
        return self._first_tokens[-1]

    def tokens_of(self, part: range) -> range:
        """Response tokens of the trees `part`."""
        return range(self._first_tokens[part.start], self._first_tokens[part.stop])

    @cached_property
    def _first_tokens(self) -> list[int]:
        """(T + 1) the first response token of each tree."""
        sizes = (sum(map(len, tree.responses)) for tree in self.trees)
        return list(accumulate(sizes, initial=0))

    @cached_property
    def _first_comparisons(self) -> list[int]:
        """(T + 1) the first comparison of each tree."""
        counts = Counter(c.group for c in self.comparisons)
        return list(accumulate((counts[t] for t in range(len(self.trees))), initial=0))

    @cached_property
    def _has_no_margins(self) -> bool:
        return all(c.margin is None for c in self.comparisons)

    @cached_property
    def crosses_groups(self) -> bool:
        """Whether a comparison takes the log-prob of another group's response."""
        return any(
            not self.starts[c.group] <= place < self.starts[c.group + 1]
            for c, places in zip(self.comparisons, self.auxiliary, strict=True)
            for place in places
        )

    def inputs(
        self,
        part: range,
        unit: str,
        cu_seqlens: Tensor,
        policy_logps: Tensor,
        reference_logps: Tensor | None,
        model_logps: Mapping[str, Tensor],
        mismatched_kl: float | None,
        side: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> LossInputs:
        """Of the trees `part`; log-probs and cu_seqlens are theirs alone."""
        device, dtype = policy_logps.device, policy_logps.dtype
        first, last = self.starts[part.start], self.starts[part.stop]
        places = range(*(self._first_comparisons[t] for t in (part.start, part.stop)))
        chosen = self.comparisons[places.start : places.stop]
        units = {"comparison": places, "response": range(first, last), "group": part}[unit]
        sizes = [self.starts[t + 1] - self.starts[t] for t in part]

        def integers(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        def numbers(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        mine = slice(self._first_tokens[part.start], self._first_tokens[part.stop])
        return LossInputs(
            policy_token_logps=policy_logps,
            reference_token_logps=reference_logps,
            cu_seqlens=cu_seqlens,
            chosen=integers([c.winner - first for c in chosen]),
            rejected=integers([c.loser - first for c in chosen]),
            probability=numbers([c.probability for c in chosen]),
            margins=None if self._has_no_margins else numbers([c.margin or 0.0 for c in chosen]),
            weight=numbers([self.weight[i] for i in units]),
            total_weight=self.total_weight,
            auxiliary=self._auxiliary(places, first, device),
            group=torch.repeat_interleave(integers(range(len(part))), integers(sizes)),
            total_tokens=self.total_tokens,
            columns={k: v[first:last].to(device, dtype) for k, v in self.columns.items()},
            token_ids=self._token_ids[mine].to(device),
            token_columns={k: v[mine].to(device, dtype) for k, v in self.token_columns.items()},
            sampler_token_logps=None if self.sampled is None else self.sampled[mine].to(device),
            model_token_logps=model_logps,
            mismatched_kl=mismatched_kl,
            side=side,
        )

    def _auxiliary(self, places: Sequence[int], first: int, device: torch.device) -> Tensor | None:
        """(C, K) of these comparisons; None where they do not all have K >= 1."""
        rows = [[at - first for at in self.auxiliary[i]] for i in places]
        if not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
            return None
        return torch.tensor(rows, dtype=torch.int64, device=device)

    def mismatched_trees(self) -> list[Tree]:
        """Each tree's prompt with the responses of the next tree. Raises RequestError for one."""
        if len(self.trees) < 2:
            raise RequestError(
                "[update] the batch must hold at least two prompts, whose responses can be swapped "
                f"to estimate the KL, but holds {len(self.trees)}"
            )
        following = [*self.trees[1:], self.trees[0]]
        return [
            Tree(tree.prompt_ids, other.responses)
            for tree, other in zip(self.trees, following, strict=True)
        ]


def loss_batch(
    batch: Preferences, objective: Objective, vocab_size: int, max_positions: int
) -> LossBatch:
    """What `objective` learns from: responses that are compared, or those that have been judged.

    Comparisons of weight 0 and responses without a reward take no part.
    Raises RequestError for a batch without examples, for ids and lengths the model cannot take, and
    for responses without sampled log-probs where the objective needs them.
    """
    _check_margins(batch, objective)
    if objective.unit == "comparison":
        comparisons = [c for c in batch.comparisons if c.weight > 0]
        used = _compared(comparisons)
    else:
        comparisons = []
        used = _judged(batch)
    if not used:
        what = "comparison of positive weight" if objective.unit == "comparison" else "response"
        raise RequestError(f"[update] the batch must hold at least one {what} but holds none")
    trees, starts, place = [], [0], dict[tuple[int, int], int]()
    for g, ks in used.items():
        group = batch.groups[g]
        tree = Tree(group.prompt_ids, [group.responses[k].token_ids for k in ks])
        check_tree("update", g, tree, vocab_size, max_positions)
        place |= {(g, k): starts[-1] + i for i, k in enumerate(ks)}
        trees.append(tree)
        starts.append(starts[-1] + len(ks))
    tree_of = {g: i for i, g in enumerate(used)}
    comparisons = sorted(comparisons, key=lambda c: c.group)
    numbered = [
        Comparison(
            tree_of[c.group],
            place[c.group, c.winner],
            place[c.group, c.loser],
            c.probability,
            c.margin,
            c.weight,
        )
        for c in comparisons
    ]
    count = {"comparison": 0, "response": starts[-1], "group": len(trees)}[objective.unit]
    weight = [c.weight for c in numbered] or [1.0] * count
    responses = [(g, k) for g, ks in used.items() for k in ks]
    return LossBatch(
        trees,
        starts,
        numbered,
        [[place[key] for key in c.further] for c in comparisons],
        weight,
        _columns(batch, responses),
        _token_columns(batch, responses),
        _sampled(batch.groups, responses, objective),
    )


def _check_margins(batch: Preferences, objective: Objective) -> None:
    """Raises RequestError for margins that the objective does not take, or not of all."""
    with_one = [i for i, c in enumerate(batch.comparisons) if c.weight > 0 and c.margin is not None]
    if not with_one:
        return
    what = f"comparisons[{with_one[0]}].margin is {batch.comparisons[with_one[0]].margin}"
    if not objective.takes_margin:
        raise RequestError(
            f"[update] {objective.name} takes no margins but {what}: "
            "dpo, hinge, slic, mmpo and rebel do"
        )
    without = [i for i, c in enumerate(batch.comparisons) if c.weight > 0 and c.margin is None]
    if without:
        raise RequestError(
            f"[update] margins must be given for every comparison or for none but {what} and "
            f"comparisons[{without[0]}] has none"
        )
    if getattr(objective, "score_gap", False) and batch.feedback is not None:
        raise RequestError(
            f"[update] {objective.name} takes margins or the scores that they are differences of "
            f"but {what} and there is Feedback"
        )


def _compared(comparisons: Sequence[Comparison]) -> dict[int, list[int]]:
    """group -> the responses of it that take part in a comparison, both in order."""
    used: dict[int, set[int]] = {}
    for c in comparisons:
        used.setdefault(c.group, set()).update((c.winner, c.loser))
        for g, k in c.further:
            used.setdefault(g, set()).add(k)
    return {g: sorted(used[g]) for g in sorted(used)}


def _judged(batch: Preferences) -> dict[int, list[int]]:
    """group -> its responses that have tokens and, where there is feedback, a value."""
    used = {}
    for g, group in enumerate(batch.groups):
        status = None if batch.feedback is None else batch.feedback.status[g]
        ks = [
            k
            for k, response in enumerate(group.responses)
            if response.token_ids and (status is None or status[k] == "value")
        ]
        if ks:
            used[g] = ks
    return used


def _columns(batch: Preferences, responses: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """Scores are the rewards and win rates the means of the preference matrix, unless given."""
    if batch.feedback is None:
        return {}
    tables: dict[str, Sequence[Sequence[Any]]] = {"scores": batch.feedback.rewards}
    if batch.feedback.preference_matrix is not None:
        tables["win_rate"] = [
            [_mean_known(row, status) for row in matrix]
            for matrix, status in zip(
                batch.feedback.preference_matrix, batch.feedback.status, strict=True
            )
        ]
    tables |= batch.feedback.columns
    tables["rewards"] = batch.feedback.rewards
    if batch.feedback.labels is not None:
        tables["labels"] = batch.feedback.labels
    return {
        name: torch.tensor(
            [math.nan if (value := table[g][k]) is None else float(value) for g, k in responses],
            dtype=torch.float64,
        )
        for name, table in tables.items()
    }


def _mean_known(row: Sequence[float | None], status: Sequence[SampleStatus]) -> float | None:
    """Over opponents that were compared and did not fail; None where there is none."""
    known = [p for p, s in zip(row, status, strict=True) if p is not None and s == "value"]
    return sum(known) / len(known) if known else None


def _token_columns(batch: Preferences, responses: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    if batch.feedback is None:
        return {}

    def values(table: Sequence[Sequence[Sequence[float] | None]], g: int, k: int) -> list[float]:
        found = table[g][k]
        none = [math.nan] * len(batch.groups[g].responses[k].token_ids)
        return none if found is None else list(found)

    return {
        name: torch.tensor([v for g, k in responses for v in values(table, g, k)]).double()
        for name, table in batch.feedback.token_columns.items()
    }


def _sampled(
    groups: Sequence[Group], responses: Sequence[tuple[int, int]], objective: Objective
) -> Tensor | None:
    logps: list[float] = []
    for g, k in responses:
        response = groups[g].responses[k]
        if response.logprobs is None or len(response.logprobs) != len(response.token_ids):
            if objective.needs_sampler:
                raise RequestError(
                    f"[update] {objective.name} needs groups[{g}].responses[{k}].logprobs, one a "
                    "token, as generate returns them"
                )
            return None
        logps.extend(response.logprobs)
    return torch.tensor(logps, dtype=torch.float32)
