"""What loops over prompts have in common: a round samples, judges, and learns from the verdict."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from pyengine.errors import CheckpointError, ConfigError
from pyengine.loops import steps
from pyengine.loops.allotment import Allotment
from pyengine.loops.evaluate import Evaluation, evaluate
from pyengine.loops.iterates import BASE, keep_base
from pyengine.loops.loop import Loop, Report
from pyengine.loops.metrics import batch_metrics, feedback_metrics, mean_metrics, sample_metrics
from pyengine.loops.minibatches import learnable, minibatches
from pyengine.loops.overlap import overlap
from pyengine.loops.prompted_checks import check_prompted
from pyengine.loops.rehearsal import rehearse, sampled_group
from pyengine.loops.sampler_judge import SamplerJudge, SkippedError
from pyengine.loops.walk import PromptWalk
from pyengine.preferences.sources.adapting import load_source_state, moved_on, source_state
from pyengine.preferences.subset import Unit

if TYPE_CHECKING:
    from pyengine.evaluation.evaluation import Measure
    from pyengine.preferences.allocations.allocation import Allocation
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group, Preferences
    from pyengine.preferences.sources.source import Source
    from pyengine.samplers.sampler import Sampler


class PromptedOptions(TypedDict, total=False):
    """What every loop over prompts takes beside its own arguments; see Prompted."""

    prompts_per_round: int | None
    sampler: Sampler | None
    allocation: Allocation | None
    accepted_above: float
    columns: Mapping[str, Sequence[Any]] | None
    eval_prompts: Sequence[Any] | None
    eval_columns: Mapping[str, Sequence[Any]] | None
    eval_sampling: Any
    eval_source: Source | None
    eval_measures: Sequence[Measure]
    eval_every: int
    min_valid_fraction: float
    judge: steps.JudgePolicy | None
    remember: steps.Remember | None
    seed: int


class Prompted(Loop):
    """A loop over prompts; what is learned from a round's groups and feedback is a subclass's.

    engine              an Engine; its weights are sampled from, scored and updated in place
    prompts             each a str | list of chat messages | list of token ids
    source              source(groups) -> Feedback, e.g. preferences.RewardFunction(f)
    objective           what `engine.update` minimises. Snapshots that it asks for are taken of the
                        policy before each round's updates, "base" before the first ones only
    sampling            SamplingParams of the training samples; its seed keys every draw
    prompts_per_round   prompts a round; None: all of them
    sampler             how groups are sampled, e.g. the best of more; None: sampling.n draws
    allocation          how samples are divided among prompts, n on average; None: alike
    accepted_above      with an allocation: a response whose reward is greater counts as correct
    columns             further fields of each prompt, parallel to `prompts`; reward functions
                        receive them by name
    eval_prompts        held-out prompts for `evaluate`; eval_sampling defaults to `sampling` with
                        another seed, and eval_source to `source`
    eval_measures       what else an evaluation measures, e.g. evaluation.PassAtK()
    eval_every          evaluate after every so many rounds; 0: only when `evaluate` is called
    min_valid_fraction  a round with a smaller fraction of valid rewards is a failure of the judge
    judge               what is done about one, see steps.JudgePolicy; None: RewardError
    remember            remember(round, groups, ask) -> ask(), or the verdict that it kept of that
                        round and those responses when they were judged before; None: always asks
    seed                order of the prompts, and of the examples of minibatches

    Prompts are walked in an order shuffled anew each epoch. Request i of round r has id
    r * prompts_per_round + i: no draw is ever repeated and none depends on the batch.
    Raises ConfigError where the objective lacks something that the other parts do not give.
    """

    draws_itself: ClassVar[bool] = False  # whether the loop says who samples: it takes no sampler
    samples_whole: ClassVar[bool] = False  # whether a round cannot be sampled in slices
    epochs: int = 1
    batch_size: int | None = None

    def __init__(
        self,
        engine: Any,
        prompts: Sequence[Any],
        source: Source,
        objective: Any,
        sampling: Any,
        *,
        prompts_per_round: int | None = None,
        sampler: Sampler | None = None,
        allocation: Allocation | None = None,
        accepted_above: float = 0.0,
        columns: Mapping[str, Sequence[Any]] | None = None,
        eval_prompts: Sequence[Any] | None = None,
        eval_columns: Mapping[str, Sequence[Any]] | None = None,
        eval_sampling: Any = None,
        eval_source: Source | None = None,
        eval_measures: Sequence[Measure] = (),
        eval_every: int = 0,
        min_valid_fraction: float = 0.5,
        judge: steps.JudgePolicy | None = None,
        remember: steps.Remember | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(engine)
        self.source, self.objective, self.sampling = source, objective, sampling
        self.prompts = list(prompts)
        self.prompts_per_round = (
            len(self.prompts) if prompts_per_round is None else prompts_per_round
        )
        self.sampler = sampler
        self.columns = columns
        self.eval_prompts = list(eval_prompts or ())
        self.eval_columns = eval_columns
        self.eval_sampling = eval_sampling or dataclasses.replace(sampling, seed=sampling.seed + 1)
        self.eval_source = eval_source or source
        self.eval_measures, self.eval_every = tuple(eval_measures), eval_every
        self.min_valid_fraction = min_valid_fraction
        self.judge, self.remember = judge or steps.JudgePolicy(), remember
        self.seed = seed
        self.rounds_without_update = self.rounds_skipped = 0
        check_prompted(self, allocation)
        self.judge = dataclasses.replace(self.judge, min_valid_fraction=min_valid_fraction)
        self.allotment = Allotment(allocation, accepted_above, len(self.prompts))
        self.allotment.rehearse(sampling.n)
        self._walk = PromptWalk(len(self.prompts), seed)
        made_up = [self._made_up(g) for g in range(min(self.prompts_per_round, 3))]
        self._rehearsal = rehearse(self, made_up)

    # What a loop says of itself

    @abstractmethod
    def _batch(self, groups: Sequence[Group], feedback: Feedback) -> tuple[Preferences, Report]:
        """What a round learns from, and what is to be reported of how it was made."""

    def rehearsed_batch(self, groups: Sequence[Group], feedback: Feedback) -> Preferences:
        """What a made-up round would learn from if nothing were left out."""
        return self._batch(groups, feedback)[0]

    @property
    def has_reference(self) -> bool:
        """Whether updates will have one."""
        return bool(self.engine.has_reference)

    @property
    def part_names(self) -> dict[str, Any]:
        """The parts that the objective depends on, as messages name them."""
        return {"source": self.source}

    @property
    def example(self) -> Unit:
        """What minibatches are made of."""
        unit: Unit = self.objective.unit
        return unit

    @property
    def most_updates(self) -> int:
        """Optimizer steps of a round, if nothing that is sampled fails or is left out."""
        if self.batch_size is None:
            return self.epochs
        of_groups = len(learnable(self._rehearsal, self.example)) / len(self._rehearsal.groups)
        examples = math.ceil(of_groups * self.prompts_per_round)
        return self.epochs * math.ceil(examples / self.batch_size)

    def _made_up(self, index: int) -> Group:
        """A group such as a round would sample."""
        return sampled_group(index, self.sampler, self.sampling)

    def _begin(self) -> None:
        """What a round does to snapshots before it samples. It may be done again."""

    def _samples(self, indices: Sequence[int], first: int) -> tuple[list[Group], list[int]]:
        """A round's groups, and the prompt of each; request ids count from `first`."""
        if self.allotment.in_stages:
            draw, judge = partial(self._drawn, indices, first), self._sampler_judge(indices)
            each = self.sampling.n
            groups = self.allotment.sampled(len(indices), each, draw, judge, self.engine)
            return groups, list(indices)
        counts = self.allotment.counts(indices, self.sampling.n)
        return self._drawn(indices, first, counts=counts), [
            i for k, i in enumerate(indices) if counts is None or counts[k]
        ]

    def _fixed(self) -> dict[str, Any]:
        """What a saved run must have had, too."""
        return {
            "seed": self.seed,
            "prompts_per_round": self.prompts_per_round,
            "prompts_digest": _digest(self.prompts),
        }

    # A round

    def _one_round(self) -> Report:
        clock = steps.Clock()
        first = self.round * self.prompts_per_round
        indices = self._walk.take(first, self.prompts_per_round)
        self._begin()
        ahead = overlap(self, len(indices))
        groups: list[Group] = []
        report: Report = {}
        try:
            groups, indices = clock(
                "generate", lambda: ahead.samples(self._samples, indices, first)
            )
            report = clock("score", lambda: self._sample_metrics(groups))
            report |= self.allotment.report(self.prompts_per_round, self.sampling.n, groups)
            verdict = clock("reward", lambda: self._verdict(groups))
        except SkippedError as skipped:  # by the judge of a sampler
            verdict = skipped.verdict
        finally:
            ahead.end()
        report |= {"judge/retries": verdict.retries}
        updates: list[dict[str, float]] = []
        if verdict.feedback is not None:
            batch, made = self._batch(groups, verdict.feedback)
            report |= feedback_metrics(groups, verdict.feedback) | made
            report |= batch_metrics(batch, self.objective.unit)
            updates = clock("update", lambda: self._fit(batch))
            self._then += self.allotment.seen(indices, verdict.feedback)
            self._then += moved_on(self.source, verdict.feedback)
        self.last_groups = groups
        self._then.append(partial(setattr, self, "last_judged", (groups, verdict.feedback)))
        report |= self._counted(verdict.feedback is None, len(updates))
        report["epoch"] = (first + self.prompts_per_round) // len(self.prompts)
        report |= mean_metrics(updates)
        tokens = sum(len(r.token_ids) for g in groups for r in g.responses)
        report["tokens_per_s"] = tokens / max(clock.seconds.get("generate", 0.0), 1e-9)
        return report | clock.report()

    def _counted(self, skipped: bool, updates: int) -> Report:
        """Rounds without an update so far, those skipped among them, and this round's updates."""
        counts = {
            "rounds_without_update": self.rounds_without_update + (not updates),
            "rounds_skipped": self.rounds_skipped + skipped,
        }
        self._then += [partial(setattr, self, name, count) for name, count in counts.items()]
        return counts | {"updates": updates}

    def _drawn(
        self,
        indices: Sequence[int],
        first: int,
        *,
        counts: Sequence[int] | None = None,
        models: Mapping[str, float] | None = None,
        draw: int = 0,
    ) -> list[Group]:
        """See steps.sample."""
        judge = None if self.sampler is None else self._sampler_judge(indices)
        return steps.sample(
            self.engine, self.prompts, indices, self.sampling, first, self.columns,
            counts=counts, sampler=self.sampler, judge=judge, models=models, draw=draw,
        )  # fmt: skip

    def _sampler_judge(self, indices: Sequence[int]) -> SamplerJudge:
        """Of whatever has a reward: a sampler sees itself which have none."""
        policy = dataclasses.replace(self.judge, min_valid_fraction=0.0)
        return SamplerJudge(
            self.source,
            lambda groups: self._asked(self.source, groups, policy),
            [self.prompts[i] for i in indices],
            {name: [values[i] for i in indices] for name, values in (self.columns or {}).items()},
        )

    def _verdict(self, groups: Sequence[Group]) -> steps.Verdict:
        if not groups:
            return steps.Verdict(None, reason="no prompt got a sample")
        return self._asked(self.source, groups, self.judge)

    def _asked(
        self, source: Source, groups: Sequence[Group], policy: steps.JudgePolicy
    ) -> steps.Verdict:
        """The verdict of a source, or the one on file."""
        number = self.round + 1
        where = f"[{type(self).__name__}] round {number}"

        def ask() -> steps.Verdict:
            return steps.judge(source, groups, policy, where)

        if self.remember is None:
            return ask()
        verdict = self.remember(number, groups, ask)
        # A sampler may have asked about the same responses, of which it takes what there is.
        if verdict.feedback is not None:
            reason = steps.too_few(verdict.feedback, policy.min_valid_fraction)
            if reason:
                return steps.given_up(policy, where, verdict.retries, reason)
        return verdict

    def _sample_metrics(self, groups: Sequence[Group]) -> Report:
        if not groups:
            return {}
        return sample_metrics(groups, steps.reference_logps(self.engine, groups))

    def _fit(self, batch: Preferences) -> list[dict[str, float]]:
        """The round's optimizer steps; none where the batch holds nothing to learn from."""
        if not steps.trainable(batch, self.objective):
            return []
        self._before_updates()
        updates: list[dict[str, float]] = []
        for part in minibatches(
            batch, self.example, self.batch_size, self.epochs, self.round * self.epochs, self.seed
        ):
            updates += steps.update(self.engine, part, self.objective)
        return updates

    def _before_updates(self) -> None:
        """What happens to weights and snapshots once it is known that the round will learn."""
        for name in self.objective.models:
            if name == BASE:
                keep_base(self.engine)
            else:
                self.engine.snapshot(name, overwrite=True)

    # Around rounds

    @property
    def epoch(self) -> int:
        """Times every prompt has been visited."""
        return self.round * self.prompts_per_round // len(self.prompts)

    @property
    def cursor(self) -> int:
        """Prompts visited in the current epoch."""
        return self.round * self.prompts_per_round % len(self.prompts)

    def run_round(self) -> Report:
        """Do one round and return its report: TRL's metric names, counters, and "time/..._s".

        Raises RewardError where the judge fails and its policy is to stop; nothing was trained.
        """
        report = super().run_round()
        if self.eval_every and self.round % self.eval_every == 0:
            clock = steps.Clock()
            report |= clock("eval", self.evaluate).metrics() | clock.report()
        return report

    def evaluate(self) -> Evaluation:
        """Evaluate the present weights on `eval_prompts`; always the same random numbers."""
        if not self.eval_prompts:
            raise ConfigError(
                f"[{type(self).__name__}] evaluate needs eval_prompts but there are none"
            )
        return evaluate(
            self.engine,
            self.eval_prompts,
            self.eval_source,
            self.eval_sampling,
            self.eval_columns,
            self.eval_measures,
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON-able place in the run; weights and optimizer are the engine's."""
        return {
            "round": self.round,
            "epoch": self.epoch,
            "cursor": self.cursor,
            "rounds_without_update": self.rounds_without_update,
            "rounds_skipped": self.rounds_skipped,
            **self.allotment.state_dict(),
            **source_state(self.source),
            **self._fixed(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        Raises
            CheckpointError  the state belongs to other prompts, another seed or other settings
        """
        for name, mine in self._fixed().items():
            if state.get(name) != mine:
                raise CheckpointError(
                    f"[{type(self).__name__}] {name} must be what the saved run had, "
                    f"{state.get(name)!r}, but is {mine!r}"
                )
        self.round = int(state["round"])
        self.rounds_without_update = int(state["rounds_without_update"])
        self.rounds_skipped = int(state.get("rounds_skipped", 0))
        self.allotment.load_state_dict(state)
        load_source_state(self.source, state)


def _digest(prompts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(prompts, ensure_ascii=True).encode()).hexdigest()[:16]
