"""maj@k: whether the answer that most of k samples give is right."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.errors import RequestError
from pyengine.evaluation.correctness import correctness
from pyengine.evaluation.evaluation import Figure
from pyengine.evaluation.pass_at_k import COUNTS
from pyengine.evaluation.standard_errors import mean_figure
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.keyed_draws import keyed_random
from pyengine.preferences.sources.verifiers.numeric import last_number
from pyengine.rules import FINITE, WHOLE, Rule, check_fields, checked, or_none

MAX_SUBSETS = 1000  # more than these are drawn instead of gone through
_TEXT = Rule("a text", lambda value: isinstance(value, str))


def majority(answers: Sequence[Any], right: Sequence[bool]) -> float:
    """Chance that the most frequent answer is right; of equally frequent ones each is as likely.

    answers  None: the sample gives none and has no vote; without any vote the chance is 0
    right    of each sample; an answer is right as often as the samples that give it are
    """
    votes: dict[Any, list[bool]] = defaultdict(list)
    for answer, is_right in zip(answers, right, strict=True):
        if answer is not None:
            votes[answer].append(is_right)
    if not votes:
        return 0.0
    most = max(len(given) for given in votes.values())
    winners = [sum(given) / most for given in votes.values() if len(given) == most]
    return math.fsum(winners) / len(winners)


def maj_at_k(answers: Sequence[Any], right: Sequence[bool], k: int, key: str = "") -> float:
    """Mean of `majority` over k of the samples: all subsets, or MAX_SUBSETS keyed draws of them.

    Raises RequestError unless 1 <= k <= samples. Source: Wang et al., arXiv:2203.11171, section 2.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise RequestError(f"[maj_at_k] k must be in [1, {n}], the samples, but is {k}")
    subsets: Iterable[Sequence[int]] = itertools.combinations(range(n), k)
    if math.comb(n, k) > MAX_SUBSETS:
        draws = keyed_random("maj_at_k", key, n, k)
        subsets = [sorted(draws.sample(range(n), k)) for _ in range(MAX_SUBSETS)]
    chances = [majority([answers[i] for i in s], [right[i] for i in s]) for s in subsets]
    return math.fsum(chances) / len(chances)


@dataclass(frozen=True)
class MajAtK:
    """Chance that the answer most of k samples agree on is right (self-consistency).

    ks         values of k; a prompt with fewer judged samples has no maj@k
    column     column of the groups with a list of the responses' final answers; None: the last
               number of each response's text
    threshold  where the feedback has no labels, a response is right when its reward is greater
    seed       of the subsets, where there are more than a thousand
    Gives "maj@<k>" for each, with errors over prompts. Raises RequestError for a response without
    text or answer, RewardError where no prompt has samples enough.
    Source: Wang et al., arXiv:2203.11171, section 2.
    """

    name: ClassVar[str] = "maj_at_k"
    ks: Sequence[int] = checked((4,), COUNTS)
    column: str | None = checked(None, or_none(_TEXT))
    threshold: float = checked(0.5, FINITE)
    seed: int = checked(0, WHOLE)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> dict[str, Figure]:
        """One figure for each k."""
        judged = []
        for g, row in enumerate(correctness(groups, feedback, self.threshold)):
            answers = self._answers(g, groups[g])
            judged.append([(a, r) for a, r in zip(answers, row, strict=True) if r is not None])
        return {
            f"maj@{k}": mean_figure(
                f"maj_at_k, k = {k}",
                [
                    maj_at_k([a for a, _ in row], [r for _, r in row], k, f"{self.seed}/{g}")
                    if len(row) >= k
                    else None
                    for g, row in enumerate(judged)
                ],
            )
            for k in self.ks
        }

    def _answers(self, g: int, group: Group) -> list[Any]:
        if self.column is not None:
            answers = group.columns.get(self.column)
            if not isinstance(answers, (list, tuple)) or len(answers) != len(group.responses):
                raise RequestError(
                    f"[maj_at_k] groups[{g}].columns[{self.column!r}] must be a list of one answer "
                    f"a response, {len(group.responses)}, but is {answers!r:.80}"
                )
            return list(answers)
        for k, response in enumerate(group.responses):
            if response.text is None:
                raise RequestError(
                    f"[maj_at_k] groups[{g}].responses[{k}].text must be a text but is None: "
                    "decode it, or name a column of answers"
                )
        return [last_number(response.text or "") for response in group.responses]
