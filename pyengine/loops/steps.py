"""The steps that loops are made of: sample, judge, pair, update. `evaluate` has its own file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pyengine.errors import PyengineError, RewardError
from pyengine.loops.evaluate import attach_columns
from pyengine.preferences.groups import Preferences
from pyengine.rules import FRACTION, NOT_NEGATIVE, POSITIVE, WHOLE, check_fields, checked, one_of

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group
    from pyengine.preferences.sources.source import Source


def sample(
    engine: Any,
    prompts: Sequence[Any],
    indices: Sequence[int],
    sampling: Any,
    first_request: int,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> list[Group]:
    """A group of `sampling.n` responses to each of the prompts `indices`, with its data columns.

    first_request  request ids count from here: no draw is repeated, none depends on the batch
    """
    ids = list(range(first_request, first_request + len(indices)))
    groups: list[Group] = engine.generate([prompts[i] for i in indices], sampling, request_ids=ids)
    attach_columns(groups, columns, indices)
    return groups


@dataclass(frozen=True)
class JudgePolicy:
    """What happens when a judge fails: it raises, or judges too few of a round's responses.

    min_valid_fraction  the least share of responses that must have a reward
    on_failure          "stop": RewardError, with nothing trained; "skip": the round is over without
                        an update, and counted
    retries             times to ask again before that
    backoff_s           seconds before the first of them; doubled each time
    deadline_s          no retry begins later than this after the first call
    """

    name: ClassVar[str] = "judge"
    min_valid_fraction: float = checked(0.5, FRACTION)
    on_failure: str = checked("stop", one_of("stop", "skip"))
    retries: int = checked(0, WHOLE)
    backoff_s: float = checked(1.0, NOT_NEGATIVE)
    deadline_s: float = checked(600.0, POSITIVE)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class Verdict:
    """What a judge said of a round: no feedback where the round is to be skipped.

    retries  times it was asked again
    reason   why there is none
    """

    feedback: Feedback | None
    retries: int = 0
    reason: str = ""


Remember = Callable[[int, "Sequence[Group]", Callable[[], Verdict]], Verdict]


def judge(source: Source, groups: Sequence[Group], policy: JudgePolicy, where: str) -> Verdict:
    """The source's feedback on groups, asked again and given up on as the policy says.

    where  begins an error's sentence, e.g. "[Online] round 3"
    Raises RewardError; a KeyboardInterrupt and errors in what the source was given pass through.
    """
    began, wait = time.monotonic(), policy.backoff_s
    for attempt in range(policy.retries + 1):
        feedback, reason = None, ""
        try:
            feedback = source(groups)
            reason = too_few(feedback, policy.min_valid_fraction)
        except PyengineError as error:
            if not isinstance(error, RewardError):
                raise  # a request that no repetition makes right
            reason = str(error)
        except Exception as error:
            reason = f"the judge raised {type(error).__name__}: {error}"
        if not reason:
            return Verdict(feedback, attempt)
        late = time.monotonic() - began + wait > policy.deadline_s
        if attempt == policy.retries or late:
            break
        time.sleep(wait)
        wait *= 2
    if policy.on_failure == "skip":
        return Verdict(None, attempt, reason)
    asked = f" (asked {attempt + 1} times)" if attempt else ""
    raise RewardError(f"{where} {reason}{asked}; no update was made")


def too_few(feedback: Feedback, min_valid_fraction: float) -> str:
    """Why too few responses have a reward; empty where enough have one."""
    if feedback.valid_fraction >= min_valid_fraction:
        return ""
    counts = feedback.counts
    first = f"; first error: {feedback.errors[0]}" if feedback.errors else ""
    return (
        f"must have a reward for at least {min_valid_fraction:.0%} of its "
        f"{sum(counts.values())} responses but {counts['value']} have one, "
        f"{counts['abstain']} abstained and {counts['error']} failed{first}"
    )


def reference_logps(engine: Any, groups: Sequence[Group]) -> list[list[float]] | None:
    """[group][response] sums of the reference's token log-probs; None without a reference."""
    if not engine.has_reference:
        return None
    scores = engine.score(groups, model="reference")
    # Summed here, as the policy's are: equal token log-probs give a KL of exactly 0.
    return [[math.fsum(map(float, s.token_logprobs)) for s in row] for row in scores]


def trainable(batch: Preferences, objective: Any) -> bool:
    """Whether a batch holds what the objective can learn from."""
    if objective.unit == "comparison":
        return any(c.weight > 0 for c in batch.comparisons)
    judged = None if batch.feedback is None else batch.feedback.status
    prompts = sum(
        any(
            response.token_ids and (judged is None or judged[g][k] == "value")
            for k, response in enumerate(group.responses)
        )
        for g, group in enumerate(batch.groups)
    )
    return prompts >= (2 if objective.needs_mismatched else 1)


def update(
    engine: Any, batch: Preferences, objective: Any, times: int = 1
) -> list[dict[str, float]]:
    """Optimizer steps on one batch; none where it holds nothing to learn from."""
    if not trainable(batch, objective):
        return []
    return [engine.update(batch, objective) for _ in range(times)]


@dataclass
class Clock:
    """Runs the phases of a round and keeps their wall-clock seconds."""

    seconds: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def __call__(self, phase: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
        return result

    def report(self) -> dict[str, float]:
        """Under "time/<phase>_s", and "time/round_s" of all."""
        spent = {f"time/{phase}_s": seconds for phase, seconds in self.seconds.items()}
        return spent | {"time/round_s": time.perf_counter() - self.start}
