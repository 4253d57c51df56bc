"""What a source of feedback is, and how it says beforehand what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group

# Which of several ranks ask a source. "each": about responses to its share of the prompts, which
# needs a source that judges every response by itself; "first": the first, about all; "all": every
# rank about all, as a source needs that asks the engine itself.
AskedBy = Literal["each", "first", "all"]


class Source(Protocol):
    """Anything that judges groups: a reward function, a reward model, a judge.

    One that gives more than rewards says so in an attribute `gives`. `reads`, a tuple, names
    columns that rows must have; `ready()` raises what keeps it from judging, such as a package that
    is not there, before a model is loaded. For `overlaps` and `ahead` see AsksAhead. `asked_by`
    says which of several ranks ask it: see AskedBy.
    """

    def __call__(self, groups: Sequence[Group]) -> Feedback: ...


@dataclass(frozen=True)
class Gives:
    """What a source's feedback holds of every response that it judges.

    labels         desirable or not
    matrix         P(response i is preferred to response j) within each group
    columns        names in Feedback.columns
    token_columns  names in Feedback.token_columns
    """

    labels: bool = False
    matrix: bool = False
    columns: tuple[str, ...] = ()
    token_columns: tuple[str, ...] = ()

    def example(self, groups: Sequence[Group]) -> Feedback:
        """Made-up feedback of that form, to try what follows: the first response is the best."""
        sizes = [len(group.responses) for group in groups]
        feedback = Feedback.from_rewards([[float(n - k) for k in range(n)] for n in sizes])
        if self.labels:
            feedback.labels = [[k % 2 == 0 for k in range(n)] for n in sizes]
        if self.matrix:
            feedback.preference_matrix = [
                [[0.5 + 0.25 * ((i < j) - (i > j)) for j in range(n)] for i in range(n)]
                for n in sizes
            ]
        feedback.columns = {name: [[1.0] * n for n in sizes] for name in self.columns}
        feedback.token_columns = {
            name: [[[1.0] * len(r.token_ids) for r in g.responses] for g in groups]
            for name in self.token_columns
        }
        return feedback


def gives(source: Source) -> Gives:
    """What a source says of itself; one that says nothing gives rewards."""
    found = getattr(source, "gives", None)
    return found if isinstance(found, Gives) else Gives()


def labels(sources: Sequence[Source]) -> list[str]:
    """What metrics and messages call each: its own name, numbered where several have the same."""
    own = []
    for source in sources:
        found = getattr(source, "label", None) or getattr(source, "name", None)
        own.append(found if isinstance(found, str) else type(source).__name__)
    return [
        name if own.count(name) == 1 else f"{name}_{own[: i + 1].count(name)}"
        for i, name in enumerate(own)
    ]
