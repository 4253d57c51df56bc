"""The steps that loops are made of: sample, judge, pair, update. `evaluate` has its own file."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pyengine.errors import PyengineError, RequestError, RewardError
from pyengine.loops.deadline import within
from pyengine.loops.evaluate import attach_columns
from pyengine.loops.one_answer import asked_by, divided_answer, one_answer
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Preferences
from pyengine.ranks import current
from pyengine.ranks.world import gather_json
from pyengine.rules import (
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    WHOLE,
    check_fields,
    checked,
    one_of,
    or_none,
)
from pyengine.samplers.sampler import derived_ids

if TYPE_CHECKING:
    from pyengine.preferences.groups import Group
    from pyengine.preferences.sources.source import Source
    from pyengine.samplers.sampler import Sampler


def sample(
    engine: Any,
    prompts: Sequence[Any],
    indices: Sequence[int],
    sampling: Any,
    first_request: int,
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    counts: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    judge: Source | None = None,
    models: Mapping[str, float] | None = None,
    draw: int = 0,
) -> list[Group]:
    """A group of `sampling.n` responses to each of the prompts `indices`, with its data columns.

    first_request  request ids count from here: no draw is repeated, none depends on the batch
    counts         samples of each, in the place of `sampling.n`; 0: no group
    sampler        how a group is sampled, in the place of n draws; `judge` is whom it may ask
    models         what is sampled from, see Engine.generate; None: the policy
    draw           number of the draw from the same requests: another one has other random numbers
    """
    ids = derived_ids(range(first_request, first_request + len(indices)), draw)
    given = [prompts[i] for i in indices]
    groups: list[Group]
    if sampler is not None:
        asked = judge if sampler.needs_source else None
        of_rows = {name: [values[i] for i in indices] for name, values in (columns or {}).items()}
        takes = inspect.signature(sampler).parameters
        further = {"columns": of_rows} if "columns" in takes else {}
        groups = sampler(engine, given, sampling, ids, asked, **further)
    else:
        params = sampling
        if counts is not None:
            kept = [k for k, count in enumerate(counts) if count]
            params = [replace(sampling, n=counts[k]) for k in kept]
            given, ids, indices = ([of[k] for k in kept] for of in (given, ids, indices))
        options = {} if models is None else {"models": models}
        groups = engine.generate(given, params, request_ids=ids, **options) if given else []
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
    timeout_s           seconds that one asking may take; then it has failed, and its thread is left
                        behind. For judges without a deadline of their own: functions, verifiers and
                        endpoints have one. None: as long as it takes
    slices              a judge that waits for another machine is asked while the round is sampled
                        in so many slices at most; 1: when all is sampled. It changes no bit
    """

    name: ClassVar[str] = "judge"
    min_valid_fraction: float = checked(0.5, FRACTION)
    on_failure: str = checked("stop", one_of("stop", "skip"))
    retries: int = checked(0, WHOLE)
    backoff_s: float = checked(1.0, NOT_NEGATIVE)
    deadline_s: float = checked(600.0, POSITIVE)
    timeout_s: float | None = checked(None, or_none(POSITIVE))
    slices: int = checked(4, COUNT)

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


def may_be_on_file(remember: Remember | None, number: int) -> bool:
    """Whether what is remembered may hold a verdict on a round; what has no method `has` may."""
    if remember is None:
        return False
    has = getattr(remember, "has", None)
    return has is None or bool(has(number))


def judge(source: Source, groups: Sequence[Group], policy: JudgePolicy, where: str) -> Verdict:
    """The source's feedback on groups, asked again and given up on as the policy says.

    Of several ranks all take the same: see one_answer and divided_answer.
    where  begins an error's sentence, e.g. "[Online] round 3"
    Raises RewardError; a KeyboardInterrupt and errors in what the source was given pass through.
    """

    def ask(about: Sequence[Group]) -> Feedback:
        return within(policy.timeout_s, lambda: source(about))

    world, by = current(), asked_by(source)
    if world.size == 1:
        return _asked(ask, groups, policy, where)
    if by == "each":
        # All ranks hear the same, so that they ask again together or not at all.
        return _asked(
            lambda about: divided_answer(world, about, ask),
            groups,
            policy,
            where,
            lambda late: any(gather_json(world, late)),
        )

    def told() -> dict[str, Any]:
        verdict = _asked(ask, groups, policy, where)
        feedback = None if verdict.feedback is None else verdict.feedback.to_json()
        return {"retries": verdict.retries, "reason": verdict.reason, "feedback": feedback}

    said = one_answer(by, told)
    heard = said.pop("feedback")
    return Verdict(None if heard is None else Feedback.from_json(heard), **said)


def _asked(
    ask: Callable[[Sequence[Group]], Feedback],
    groups: Sequence[Group],
    policy: JudgePolicy,
    where: str,
    agreed: Callable[[bool], bool] = bool,
) -> Verdict:
    """agreed  whether it is too late to ask again, from whether it is so here"""
    began, wait = time.monotonic(), policy.backoff_s
    for attempt in range(policy.retries + 1):
        feedback, reason = None, ""
        try:
            feedback = ask(groups)
            reason = malformed(feedback, groups) or too_few(feedback, policy.min_valid_fraction)
        except PyengineError as error:
            if not isinstance(error, RewardError):
                raise  # a request that no repetition makes right
            reason = str(error)
        except Exception as error:
            reason = f"the judge raised {type(error).__name__}: {error}"
        if not reason:
            return Verdict(feedback, attempt)
        late = agreed(time.monotonic() - began + wait > policy.deadline_s)
        if attempt == policy.retries or late:
            break
        time.sleep(wait)
        wait *= 2
    return given_up(policy, where, attempt, reason)


def given_up(policy: JudgePolicy, where: str, retries: int, reason: str) -> Verdict:
    """What follows from a failure: no feedback, or RewardError where it ends the run."""
    if policy.on_failure == "skip":
        return Verdict(None, retries, reason)
    asked = f" (asked {retries + 1} times)" if retries else ""
    raise RewardError(f"{where} {reason}{asked}; no update was made")


def malformed(feedback: Any, groups: Sequence[Group]) -> str:
    """Why what a source gave is no feedback on these groups; empty where it is."""
    if not isinstance(feedback, Feedback):
        return f"the judge must give Feedback but gave {type(feedback).__name__}"
    try:
        feedback.check_shape([len(group.responses) for group in groups])
        feedback.check_tokens([[len(r.token_ids) for r in group.responses] for group in groups])
    except RequestError as error:
        return f"the judge must give feedback on every response: {error}"
    return ""


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
