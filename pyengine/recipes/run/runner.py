"""Run a recipe from its first round to a saved model, through kills and interruptions."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyengine import objectives
from pyengine.engine import Engine, SamplingParams
from pyengine.engine.persist import checkpoint as checkpoints
from pyengine.errors import CheckpointError, MissingDependencyError
from pyengine.files import atomic_write
from pyengine.loops import Evaluation, Online
from pyengine.loops.evaluate import mean_and_error
from pyengine.preferences import AllPairs, BestWorst, Pairing, RewardFunction
from pyengine.recipes.run.interrupt import StopRequest
from pyengine.recipes.run.run_folder import RunFolder, append_lines, read_lines
from pyengine.recipes.run.samples import comparison_markdown, sample_rows
from pyengine.recipes.schema.prompt_files import Prompts, load_prompts
from pyengine.recipes.schema.recipe import Recipe
from pyengine.recipes.schema.rewards import Reward, load_reward
from pyengine.reports.plot import plot

OnReport = Callable[[dict[str, Any]], None]
OnStatus = Callable[[str], None]
_STOPPING = "stopping at the end of this round with a checkpoint; once more to stop at once"


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    rounds, steps          rounds done and optimizer steps among them
    before, after          held-out mean reward before and after training, each with its standard
                           error over prompts
    gain                   their mean difference, paired by prompt, with its standard error
    seconds                wall-clock time of this call, model loading included
    interrupted            stopped early by a signal; `resume` continues
    """

    folder: Path
    rounds: int
    steps: int
    seconds: float
    interrupted: bool = False
    before: tuple[float, float | None] | None = None
    after: tuple[float, float | None] | None = None
    gain: tuple[float, float | None] | None = None


def run(
    recipe: Recipe,
    out_dir: str | Path,
    *,
    resume: bool = False,
    allow_code: bool = False,
    on_report: OnReport | None = None,
    on_status: OnStatus | None = None,
) -> RunResult:
    """Run `recipe` in folder `out_dir`; see RunFolder for what it writes there.

    resume      continue from the newest verified checkpoint: same weights, to the bit, as an
                uninterrupted run
    allow_code  whether the recipe may name Python code as its reward
    on_report   called with each round's report; round 0 is the evaluation before training
    on_status   called with a few words whenever something slow begins

    Raises
        ConfigError      the recipe or the folder cannot be used
        RewardError      a round had too few valid rewards
        CheckpointError  a checkpoint is of other prompts or another pyengine
    """
    start = time.perf_counter()
    session = _Session(recipe, out_dir, allow_code, on_report or _ignore, on_status or _ignore)
    with StopRequest(lambda: session.say(_STOPPING)) as stop:
        session.open(resume)
        interrupted = session.train(stop)
        result = session.result(time.perf_counter() - start, interrupted)
        return result if interrupted else session.finish(result)


def _ignore(_: Any) -> None:
    pass


class _Session:
    def __init__(
        self, recipe: Recipe, out_dir: str | Path, allow_code: bool, tell: OnReport, say: OnStatus
    ) -> None:
        self.recipe, self.tell, self.say = recipe, tell, say
        self.folder = RunFolder(out_dir)
        # Everything that can be wrong with the recipe's parts shows before a model is loaded or a
        # file written.
        self.reward: Reward = load_reward(recipe.reward.function, allow_code=allow_code)
        settings = dict(recipe.objective)
        self.objective = objectives.get(settings.pop("name"), **settings)
        self.train_prompts = load_prompts(recipe.prompts)
        self.eval_prompts = load_prompts(recipe.eval.prompts) if recipe.eval else Prompts([], {})
        self.engine: Engine
        self.loop: Online
        self.saved_round: int | None = None

    def open(self, resume: bool) -> None:
        has_run = self.folder.open(self.recipe, resume)
        if resume and not has_run:
            self.say(f"nothing to resume in {self.folder.path}: starting from the first round")
        newest = checkpoints.newest_verified(self.folder.checkpoints) if has_run else None
        if newest is None:
            self.say(f"loading {self.recipe.model}")
            self.engine = self._fresh_engine()
        else:
            self.say(f"resuming from {newest}")
            self.engine = Engine.load_checkpoint(newest)
        self.say(f"memory: {self.engine.memory_plan()}")
        self.loop = self._loop()
        if newest is not None:
            if not isinstance(self.engine.extra.get("loop"), dict):
                raise CheckpointError(f"[{newest}] must hold the state of a loop but holds none")
            self.loop.load_state_dict(self.engine.extra["loop"])
            self.saved_round = self.loop.round
        # Without a checkpoint the evaluation before training is made again, too.
        self.folder.cut(self.loop.round if newest is not None else -1)

    def _fresh_engine(self) -> Engine:
        recipe = self.recipe
        return Engine.from_pretrained(
            recipe.model,
            dtype=recipe.dtype,
            reference=recipe.reference,
            learning_rate=recipe.learning_rate,
            schedule=recipe.schedule,
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            total_steps=recipe.rounds * recipe.updates_per_round,
            seed=recipe.seed,
        )

    def _loop(self) -> Online:
        recipe = self.recipe
        return Online(
            self.engine,
            self.train_prompts.prompts,
            source=RewardFunction(self.reward, timeout_s=recipe.reward.timeout_s),
            pairing=_pairing(recipe),
            objective=self.objective,
            sampling=recipe.sampling,
            prompts_per_round=recipe.prompts_per_round,
            updates_per_round=recipe.updates_per_round,
            columns=self.train_prompts.columns,
            eval_prompts=self.eval_prompts.prompts,
            eval_columns=self.eval_prompts.columns,
            eval_sampling=_eval_sampling(recipe),
            min_valid_fraction=recipe.min_valid_fraction,
            seed=recipe.seed,
        )

    def train(self, stop: StopRequest) -> bool:
        """Do the rounds that are left; True if a signal ended them early."""
        if self.loop.round == 0 and not self.folder.has_baseline():
            self._record({"round": 0, "step": self.engine.step_count}, evaluate=True)
        while self.loop.round < self.recipe.rounds:
            if stop.requested:
                self._save_checkpoint()
                return True
            round_report = self.loop.run_round()
            self._record(round_report, evaluate=self._evaluation_is_due())
            if self._checkpoint_is_due():
                self._save_checkpoint()
        return False

    def _evaluation_is_due(self) -> bool:
        done, spec = self.loop.round, self.recipe.eval
        return done == self.recipe.rounds or bool(spec and spec.every and done % spec.every == 0)

    def _checkpoint_is_due(self) -> bool:
        done, every = self.loop.round, self.recipe.checkpoint_every
        return done == self.recipe.rounds or (every > 0 and done % every == 0)

    def _record(self, row: dict[str, Any], evaluate: bool) -> None:
        if evaluate and self.recipe.eval is not None:
            self.say(f"evaluating {len(self.eval_prompts.prompts)} held-out prompts")
            evaluation: Evaluation = self.loop.evaluate()
            row |= evaluation.metrics()
            append_lines(self.folder.samples, sample_rows(self.loop.round, evaluation))
        append_lines(self.folder.metrics, [row])
        self.tell(row)

    def _save_checkpoint(self) -> None:
        if self.saved_round == self.loop.round:
            return
        path = self.folder.checkpoint(self.loop.round)
        self.engine.save_checkpoint(path, extra={"loop": self.loop.state_dict()})
        self.saved_round = self.loop.round
        checkpoints.prune(self.folder.checkpoints, self.recipe.keep_checkpoints)

    def result(self, seconds: float, interrupted: bool) -> RunResult:
        summary = RunResult(
            self.folder.path, self.loop.round, self.engine.step_count, seconds, interrupted
        )
        if self.recipe.eval is None or interrupted:
            return summary
        rows = read_lines(self.folder.samples)
        first = [row["mean"] for row in rows if row["round"] == 0]
        last = [row["mean"] for row in rows if row["round"] == self.loop.round]
        both = [(b, a) for b, a in zip(first, last, strict=True) if b is not None and a is not None]
        return dataclasses.replace(
            summary,
            before=mean_and_error([m for m in first if m is not None]),
            after=mean_and_error([m for m in last if m is not None]),
            gain=mean_and_error([a - b for b, a in both]) if both else None,
        )

    def finish(self, result: RunResult) -> RunResult:
        """Write the model, the plot, the samples side by side and result.json."""
        start = time.perf_counter()
        self.say(f"saving the model to {self.folder.model}")
        self.engine.save_pretrained(self.folder.model)
        if self.recipe.eval is not None:
            text = comparison_markdown(read_lines(self.folder.samples), self.loop.round)
            atomic_write(self.folder.samples_markdown, text)
        try:
            plot(read_lines(self.folder.metrics), self.folder.plot, self.recipe.model)
        except MissingDependencyError as error:
            self.say(f"no plot: {error}")  # hours of training are not lost for a picture
        result = dataclasses.replace(result, seconds=result.seconds + time.perf_counter() - start)
        plain = {k: v for k, v in dataclasses.asdict(result).items() if k != "folder"}
        atomic_write(self.folder.result, json.dumps(plain, indent=2) + "\n")
        return result


def _pairing(recipe: Recipe) -> Pairing:
    kinds: dict[str, type[BestWorst] | type[AllPairs]] = {
        "best_worst": BestWorst,
        "all_pairs": AllPairs,
    }
    return kinds[recipe.pairing.name](min_margin=recipe.pairing.min_margin)


def _eval_sampling(recipe: Recipe) -> SamplingParams | None:
    spec = recipe.eval
    if spec is None:
        return None
    max_tokens = spec.max_tokens or recipe.sampling.max_tokens
    return dataclasses.replace(recipe.sampling, n=spec.n, max_tokens=max_tokens, seed=spec.seed)
