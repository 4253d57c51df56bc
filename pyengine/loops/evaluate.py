"""Mean reward of a policy on fixed prompts, with its standard error."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyengine.errors import ConfigError, RewardError
from pyengine.evaluation.evaluation import Figure, Measure
from pyengine.evaluation.standard_errors import mean_and_error
from pyengine.loops.measures import measured
from pyengine.loops.one_answer import feedback_of

if TYPE_CHECKING:
    from pyengine.preferences.groups import Group
    from pyengine.preferences.sources.source import Source


@dataclass(frozen=True)
class Evaluation:
    """Rewards of sampled responses to held-out prompts.

    prompt_means    mean reward of each prompt's valid responses; None where no response had a valid
                    reward
    mean            mean of the prompt means
    standard_error  of that mean, over prompts (samples of one prompt are not independent); None for
                    one prompt
    errors          the first few messages of what went wrong with a reward
    figures         what else was measured, by name
    """

    groups: list[Group]
    rewards: list[list[float | None]]
    prompt_means: list[float | None]
    mean: float
    standard_error: float | None
    errors: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def prompts_digest(self) -> str:
        """Of the prompts as they were given, with their data fields, in order."""
        given = [(g.prompt_ids if g.prompt is None else g.prompt, g.columns) for g in self.groups]
        # Parquet has values that JSON has not, such as dates; their text tells them apart.
        text = json.dumps(given, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def gain_over(self, before: Evaluation) -> tuple[float, float | None]:
        """Mean difference to an evaluation of the same prompts, and its error, paired by prompt.

        Raises
            ConfigError  the prompts or their data fields differ
            RewardError  no prompt has a valid reward in both
        """
        self.check_same_prompts(before, "gain_over")
        pairs = zip(self.prompt_means, before.prompt_means, strict=True)
        gains = [a - b for a, b in pairs if a is not None and b is not None]
        if not gains:
            raise RewardError(
                f"[gain_over] at least one prompt must have a valid reward in both evaluations but "
                f"0 of {len(self.groups)} have"
            )
        return mean_and_error(gains)

    def check_same_prompts(self, other: Evaluation, where: str) -> None:
        """Raises ConfigError unless both are of the same prompts in the same order."""
        rule = f"[{where}] both evaluations must have the same prompts"
        if len(other.groups) != len(self.groups):
            raise ConfigError(f"{rule} but they have {len(self.groups)} and {len(other.groups)}")
        if other.prompts_digest != self.prompts_digest:
            raise ConfigError(
                f"{rule} but their prompts_digest are {self.prompts_digest!r} and "
                f"{other.prompts_digest!r}"
            )

    def metrics(self) -> dict[str, float | int | None]:
        """Flat metrics for a report, all under "eval/"; errors end in "_stderr"."""
        lengths = [len(r.token_ids) for g in self.groups for r in g.responses]
        valid = sum(r is not None for row in self.rewards for r in row)
        metrics: dict[str, float | int | None] = {
            "eval/objective/scores": self.mean,
            "eval/objective/scores_stderr": self.standard_error,
            "eval/completions/mean_length": sum(lengths) / len(lengths),
            "eval/reward/valid": valid,
            "eval/reward/invalid": len(lengths) - valid,
        }
        for name, figure in self.figures.items():
            metrics |= {
                f"eval/{name}": figure.value,
                f"eval/{name}_stderr": figure.standard_error,
            }
        return metrics


def evaluate(
    engine: Any,
    prompts: Sequence[Any],
    source: Source,
    sampling: Any,
    columns: Mapping[str, Sequence[Any]] | None = None,
    measures: Sequence[Measure] = (),
) -> Evaluation:
    """Sample `sampling.n` responses to every prompt and average their rewards.

    Request ids are the prompts' positions and the seed is the caller's, so two evaluations draw
    with the same random numbers and their difference is less noisy than either.

    measures  of the judged responses, beside their mean reward: see `pyengine parts evaluations`

    Raises
        RewardError  no response had a valid reward
    """
    groups = engine.generate(list(prompts), sampling, request_ids=list(range(len(prompts))))
    attach_columns(groups, columns, range(len(prompts)))
    return judged(groups, source, measures, engine)


def judged(
    groups: list[Group], source: Source, measures: Sequence[Measure] = (), engine: Any = None
) -> Evaluation:
    """The evaluation of responses that are there already.

    engine  for measures that compare the policy with its reference

    Raises
        RewardError  no response had a valid reward
    """
    feedback = feedback_of(source, groups)
    rewards = [list(row) for row in feedback.rewards]
    prompt_means: list[float | None] = []
    for row in rewards:
        valid = [r for r in row if r is not None]
        prompt_means.append(math.fsum(valid) / len(valid) if valid else None)
    known = [m for m in prompt_means if m is not None]
    if not known:
        total = sum(len(row) for row in rewards)
        raise RewardError(
            f"[evaluate] at least one reward must be valid but 0 of {total} are; "
            "the reward function abstained or failed on every response"
            + (f"; the first failure: {feedback.errors[0]}" if feedback.errors else "")
        )
    mean, error = mean_and_error(known)
    figures = measured(measures, groups, feedback, engine)
    return Evaluation(groups, rewards, prompt_means, mean, error, list(feedback.errors), figures)


def attach_columns(
    groups: Sequence[Group], columns: Mapping[str, Sequence[Any]] | None, indices: Sequence[int]
) -> None:
    """Give each group the data fields of its prompt; reward functions receive them."""
    for name, values in (columns or {}).items():
        for group, index in zip(groups, indices, strict=True):
            group.columns[name] = values[index]
