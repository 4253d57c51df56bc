"""What an evaluation measures beside the mean reward; what cannot be is refused beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyengine.errors import ConfigError, RequestError, RewardError
from pyengine.evaluation.reference_columns import with_reference
from pyengine.preferences.groups import Group, Response
from pyengine.preferences.sources.source import gives

if TYPE_CHECKING:
    from pyengine.evaluation.evaluation import Figure, Measure
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.sources.source import Source


def measured(
    measures: Sequence[Measure], groups: Sequence[Group], feedback: Feedback, engine: Any
) -> dict[str, Figure]:
    """The figures of all measures; the reference is scored where one of them reads it.

    Raises RequestError where a measure lacks something, RewardError where nothing can be measured.
    """
    if any(map(_reads_reference, measures)):
        feedback = with_reference(groups, feedback, engine)
    figures: dict[str, Figure] = {}
    for measure in measures:
        figures |= measure(groups, feedback)
    return figures


def check_measures(
    measures: Sequence[Measure], source: Source, samples: int, has_reference: bool
) -> None:
    """Raises ConfigError, naming it, for a measure that such evaluations cannot feed.

    Each is tried on what the source says it gives of made-up responses, without asking a model.
    samples  responses a prompt
    """
    groups = [
        Group([1, g], [Response([k + 1] * 4, [-1.0] * 4, text=f"{k} {g}") for k in range(samples)])
        for g in range(2)
    ]
    feedback = gives(source).example(groups)
    for measure in measures:
        who = f"[evaluate] {measure.name} cannot be measured"
        if _reads_reference(measure) and not has_reference:
            raise ConfigError(f"{who}: it reads a reference and the engine has none")
        try:
            measured([getattr(measure, "rehearsal", measure)], groups, feedback, _MadeUp())
        except (RequestError, RewardError) as error:
            raise ConfigError(f"{who} of {samples} samples a prompt: {error}") from error


def _reads_reference(measure: Measure) -> bool:
    return bool(getattr(measure, "reads_reference", False))


class _MadeUpScore:
    def __init__(self, response: Response) -> None:
        self.token_logprobs = [-1.0] * len(response.token_ids)


class _MadeUp:
    """An engine that finds every token equally likely."""

    def score(self, groups: Sequence[Group], model: str) -> list[list[_MadeUpScore]]:
        return [[_MadeUpScore(response) for response in group.responses] for group in groups]
