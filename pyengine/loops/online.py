"""Online preference learning: sample, judge, pair and update the same weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyengine.errors import CheckpointError, ConfigError, RewardError
from pyengine.loops.evaluate import Evaluation, attach_columns, evaluate
from pyengine.loops.metrics import feedback_metrics, mean_metrics, sample_metrics
from pyengine.loops.walk import PromptWalk
from pyengine.preferences.groups import Preferences

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback, Source
    from pyengine.preferences.groups import Comparison, Group
    from pyengine.preferences.pairings.pairing import Pairing

Report = dict[str, Any]


class Online:
    """The loop prompts -> n samples -> rewards -> comparisons -> update; one report (a dict) a
    round.

    engine              an Engine; its weights are sampled from, scored and updated in place
    prompts             each a str | list of chat messages | list of token ids
    source              source(groups) -> Feedback, e.g. preferences.RewardFunction(f)
    pairing             pairing(groups, feedback) -> Pairs, e.g. preferences.BestWorst()
    objective           what `engine.update` minimises, e.g. objectives.DPO(beta=0.1)
    sampling            SamplingParams of the training samples; its seed keys every draw
    prompts_per_round   prompts a round; None: all of them
    updates_per_round   optimizer steps on each round's comparisons; the first is on-policy
    columns             further fields of each prompt, parallel to `prompts`; reward functions
                        receive them by name
    eval_prompts        held-out prompts for `evaluate`; eval_sampling defaults to `sampling` with
                        another seed
    eval_every          evaluate after every so many rounds; 0: only when `evaluate` is called
    min_valid_fraction  a round with a smaller fraction of valid rewards raises RewardError and
                        trains nothing
    seed                order of the prompts

    Prompts are walked in an order shuffled anew each epoch. Request i of round r has id r *
    prompts_per_round + i: no draw is
    ever repeated and none depends on the batch. A round either completes or leaves the loop where
    it was.
    """

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
        eval_every: int = 0,
        min_valid_fraction: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.engine, self.source, self.pairing = engine, source, pairing
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
        self.eval_every = eval_every
        self.min_valid_fraction = min_valid_fraction
        self.seed = seed
        self.round = 0
        self.rounds_without_update = 0
        self.last_groups: list[Group] = []
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

    @property
    def epoch(self) -> int:
        """Times every prompt has been visited."""
        return self.round * self.prompts_per_round // len(self.prompts)

    @property
    def cursor(self) -> int:
        """Prompts visited in the current epoch."""
        return self.round * self.prompts_per_round % len(self.prompts)

    def run(self, rounds: int) -> Iterator[Report]:
        """Do `rounds` more rounds, yielding each one's report as it completes.

        Raises
            RewardError  a round had fewer valid rewards than min_valid_fraction; the weights are
                         untouched
        """
        for _ in range(rounds):
            yield self.run_round()

    def run_round(self) -> Report:
        """Do one round and return its report: TRL's metric names, counters, and "time/..._s"."""
        clock = _Clock()
        groups = clock("generate", self._generate)
        feedback = clock("reward", lambda: self.source(groups))
        self._require_valid(feedback)
        pairs = self.pairing(groups, feedback)
        reference = clock("score", lambda: self._reference_logprobs(groups))
        updates = clock("update", lambda: self._update(groups, pairs.comparisons))

        self.round += 1
        self.rounds_without_update += not updates
        self.last_groups = groups
        report: Report = {"round": self.round, "step": self.engine.step_count, "epoch": self.epoch}
        report |= sample_metrics(groups, reference) | feedback_metrics(feedback, pairs)
        report["rounds_without_update"] = self.rounds_without_update
        report |= mean_metrics(updates)
        if self.eval_every and self.round % self.eval_every == 0:
            report |= clock("eval", self.evaluate).metrics()
        tokens = sum(len(r.token_ids) for g in groups for r in g.responses)
        report["tokens_per_s"] = tokens / max(clock.seconds["generate"], 1e-9)
        report |= clock.report()
        return report

    def evaluate(self) -> Evaluation:
        """Evaluate the present weights on `eval_prompts`; always the same random numbers."""
        if not self.eval_prompts:
            raise ConfigError("[Online] evaluate needs eval_prompts but there are none")
        return evaluate(
            self.engine, self.eval_prompts, self.source, self.eval_sampling, self.eval_columns
        )

    def _generate(self) -> list[Group]:
        start = self.round * self.prompts_per_round
        indices = self._walk.take(start, self.prompts_per_round)
        ids = list(range(start, start + len(indices)))
        groups: list[Group] = self.engine.generate(
            [self.prompts[i] for i in indices], self.sampling, request_ids=ids
        )
        attach_columns(groups, self.columns, indices)
        return groups

    def _require_valid(self, feedback: Feedback) -> None:
        if feedback.valid_fraction < self.min_valid_fraction:
            counts = feedback.counts
            first = f"; first error: {feedback.errors[0]}" if feedback.errors else ""
            raise RewardError(
                f"[Online] round {self.round + 1} must have a reward for at least "
                f"{self.min_valid_fraction:.0%} of its {sum(counts.values())} responses but "
                f"{counts['value']} have one, {counts['abstain']} abstained and "
                f"{counts['error']} failed{first}; no update was made"
            )

    def _reference_logprobs(self, groups: Sequence[Group]) -> list[list[float]] | None:
        if not self.engine.has_reference:
            return None
        scores = self.engine.score(groups, model="reference")
        # Summed here, as the policy's are: equal token log-probs give a KL of exactly 0.
        return [[math.fsum(map(float, s.token_logprobs)) for s in row] for row in scores]

    def _update(
        self, groups: Sequence[Group], comparisons: Sequence[Comparison]
    ) -> list[Mapping[str, float]]:
        if not comparisons:
            return []
        batch = Preferences(groups, comparisons)
        return [self.engine.update(batch, self.objective) for _ in range(self.updates_per_round)]

    def state_dict(self) -> dict[str, Any]:
        """JSON-able place in the run; weights and optimizer are the engine's."""
        return {
            "round": self.round,
            "epoch": self.epoch,
            "cursor": self.cursor,
            "rounds_without_update": self.rounds_without_update,
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


class _Clock:
    """Runs a phase and keeps its wall-clock seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def __call__(self, phase: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        self.seconds[phase] = time.perf_counter() - start
        return result

    def report(self) -> dict[str, float]:
        spent = {f"time/{phase}_s": seconds for phase, seconds in self.seconds.items()}
        return spent | {"time/round_s": time.perf_counter() - self._start}


def _digest(prompts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(prompts, ensure_ascii=True).encode()).hexdigest()[:16]
