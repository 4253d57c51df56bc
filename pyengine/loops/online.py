"""Online preference learning: sample, judge, pair and update the same weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pyengine.errors import CheckpointError, ConfigError
from pyengine.loops import steps
from pyengine.loops.evaluate import Evaluation, evaluate
from pyengine.loops.loop import Loop, Report
from pyengine.loops.metrics import feedback_metrics, mean_metrics, sample_metrics
from pyengine.loops.rehearsal import check_parts
from pyengine.loops.walk import PromptWalk
from pyengine.preferences.groups import Preferences

if TYPE_CHECKING:
    from pyengine.preferences.groups import Group
    from pyengine.preferences.pairings.pairing import Pairing
    from pyengine.preferences.sources.source import Source

BASE = "base"  # the snapshot that an objective may ask for of the weights before the first round


class Online(Loop):
    """The loop prompts -> n samples -> feedback -> comparisons -> update.

    engine              an Engine; its weights are sampled from, scored and updated in place
    prompts             each a str | list of chat messages | list of token ids
    source              source(groups) -> Feedback, e.g. preferences.RewardFunction(f)
    pairing             pairing(groups, feedback) -> Pairs, e.g. preferences.BestWorst()
    objective           what `engine.update` minimises, e.g. objectives.DPO(beta=0.1); it gets
                        the comparisons and the feedback. Snapshots that it asks for are taken of
                        the policy before each round's update, "base" before the first one only
    sampling            SamplingParams of the training samples; its seed keys every draw
    prompts_per_round   prompts a round; None: all of them
    updates_per_round   optimizer steps on each round's batch; the first is on-policy
    columns             further fields of each prompt, parallel to `prompts`; reward functions
                        receive them by name
    eval_prompts        held-out prompts for `evaluate`; eval_sampling defaults to `sampling` with
                        another seed, and eval_source to `source`
    eval_every          evaluate after every so many rounds; 0: only when `evaluate` is called
    min_valid_fraction  a round with a smaller fraction of valid rewards is a failure of the judge
    judge               what is done about one, see steps.JudgePolicy; None: RewardError
    remember            remember(round, groups, ask) -> ask(), or the verdict that it kept of that
                        round and those responses when they were judged before; None: always asks
    seed                order of the prompts

    Prompts are walked in an order shuffled anew each epoch. Request i of round r has id
    r * prompts_per_round + i: no draw is ever repeated and none depends on the batch.
    Raises ConfigError where the objective lacks something that source and pairing do not give.
    """

    name: ClassVar[str] = "online"

    def __init__(
        self,
        engine: Any,
        prompts: Sequence[Any],
        source: Source,
        pairing: Pairing,
        objective: Any,
        sampling: Any,
        *,
        prompts_per_round: int | None = None,
        updates_per_round: int = 1,
        columns: Mapping[str, Sequence[Any]] | None = None,
        eval_prompts: Sequence[Any] | None = None,
        eval_columns: Mapping[str, Sequence[Any]] | None = None,
        eval_sampling: Any = None,
        eval_source: Source | None = None,
        eval_every: int = 0,
        min_valid_fraction: float = 0.5,
        judge: steps.JudgePolicy | None = None,
        remember: steps.Remember | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(engine)
        self.source, self.pairing = source, pairing
        self.objective, self.sampling = objective, sampling
        self.prompts = list(prompts)
        self.prompts_per_round = (
            len(self.prompts) if prompts_per_round is None else prompts_per_round
        )
        self.updates_per_round = updates_per_round
        self.columns = columns
        self.eval_prompts = list(eval_prompts or ())
        self.eval_columns = eval_columns
        self.eval_sampling = eval_sampling or dataclasses.replace(sampling, seed=sampling.seed + 1)
        self.eval_source = eval_source or source
        self.eval_every = eval_every
        self.min_valid_fraction = min_valid_fraction
        self.judge, self.remember = judge or steps.JudgePolicy(), remember
        self.seed = seed
        self.rounds_without_update = self.rounds_skipped = 0
        self._check()
        self._walk = PromptWalk(len(self.prompts), seed)

    def _check(self) -> None:
        if not self.prompts:
            raise ConfigError("[Online] prompts must not be empty")
        for name, minimum in (
            ("prompts_per_round", 1),
            ("updates_per_round", 1),
            ("eval_every", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise ConfigError(
                    f"[Online] {name} must be an integer >= {minimum} but is {value!r}"
                )
        if not 0.0 <= self.min_valid_fraction <= 1.0:
            raise ConfigError(
                f"[Online] min_valid_fraction must be in [0, 1] but is {self.min_valid_fraction}"
            )
        if self.eval_every and not self.eval_prompts:
            raise ConfigError(
                f"[Online] eval_every = {self.eval_every} needs eval_prompts but there are none"
            )
        for kind, columns, prompts in (
            ("columns", self.columns, self.prompts),
            ("eval_columns", self.eval_columns, self.eval_prompts),
        ):
            for name, values in (columns or {}).items():
                if len(values) != len(prompts):
                    raise ConfigError(
                        f"[Online] {kind}[{name!r}] must have one value a prompt "
                        f"({len(prompts)}) but has {len(values)}"
                    )
        self.judge = dataclasses.replace(self.judge, min_valid_fraction=self.min_valid_fraction)
        check_parts(
            self.source,
            self.pairing,
            self.objective,
            samples=self.sampling.n,
            prompts=self.prompts_per_round,
            has_reference=self.engine.has_reference,
        )

    @property
    def epoch(self) -> int:
        """Times every prompt has been visited."""
        return self.round * self.prompts_per_round // len(self.prompts)

    @property
    def cursor(self) -> int:
        """Prompts visited in the current epoch."""
        return self.round * self.prompts_per_round % len(self.prompts)

    def _one_round(self) -> Report:
        clock = steps.Clock()
        first = self.round * self.prompts_per_round
        indices = self._walk.take(first, self.prompts_per_round)
        groups = clock(
            "generate",
            lambda: steps.sample(
                self.engine, self.prompts, indices, self.sampling, first, self.columns
            ),
        )
        verdict = clock("reward", lambda: self._verdict(groups))
        reference = clock("score", lambda: steps.reference_logps(self.engine, groups))
        report: Report = sample_metrics(groups, reference)
        report |= {"judge/retries": verdict.retries}
        updates: list[dict[str, float]] = []
        if verdict.feedback is not None:
            pairs = self.pairing(groups, verdict.feedback)
            batch = Preferences(groups, pairs.comparisons, verdict.feedback)
            report |= feedback_metrics(verdict.feedback, pairs)
            updates = clock("update", lambda: self._update(batch))
        self.rounds_skipped += verdict.feedback is None
        self.rounds_without_update += not updates
        self.last_groups = groups
        report |= {
            "rounds_without_update": self.rounds_without_update,
            "rounds_skipped": self.rounds_skipped,
            "epoch": (first + self.prompts_per_round) // len(self.prompts),
        }
        report |= mean_metrics(updates)
        tokens = sum(len(r.token_ids) for g in groups for r in g.responses)
        report["tokens_per_s"] = tokens / max(clock.seconds["generate"], 1e-9)
        return report | clock.report()

    def _verdict(self, groups: Sequence[Group]) -> steps.Verdict:
        number = self.round + 1

        def ask() -> steps.Verdict:
            return steps.judge(self.source, groups, self.judge, f"[Online] round {number}")

        return ask() if self.remember is None else self.remember(number, groups, ask)

    def _update(self, batch: Preferences) -> list[dict[str, float]]:
        if steps.trainable(batch, self.objective):
            for name in self.objective.models:
                if name != BASE or BASE not in self.engine.snapshots:
                    self.engine.snapshot(name, overwrite=True)
        return steps.update(self.engine, batch, self.objective, self.updates_per_round)

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
            raise ConfigError("[Online] evaluate needs eval_prompts but there are none")
        return evaluate(
            self.engine,
            self.eval_prompts,
            self.eval_source,
            self.eval_sampling,
            self.eval_columns,
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON-able place in the run; weights and optimizer are the engine's."""
        return {
            "round": self.round,
            "epoch": self.epoch,
            "cursor": self.cursor,
            "rounds_without_update": self.rounds_without_update,
            "rounds_skipped": self.rounds_skipped,
            "seed": self.seed,
            "prompts_per_round": self.prompts_per_round,
            "prompts_digest": _digest(self.prompts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        Raises
            CheckpointError  the state belongs to other prompts, another seed or other
                             prompts_per_round
        """
        mine = self.state_dict()
        for name in ("seed", "prompts_per_round", "prompts_digest"):
            if state.get(name) != mine[name]:
                raise CheckpointError(
                    f"[Online] {name} must be what the saved run had, {state.get(name)!r}, "
                    f"but is {mine[name]!r}"
                )
        self.round = int(state["round"])
        self.rounds_without_update = int(state["rounds_without_update"])
        self.rounds_skipped = int(state.get("rounds_skipped", 0))


def _digest(prompts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(prompts, ensure_ascii=True).encode()).hexdigest()[:16]
