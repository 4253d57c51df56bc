"""Run a recipe from its first round to a saved model, through kills and interruptions."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path
from typing import Any

from pyengine.engine import Engine
from pyengine.engine.config import EngineConfig
from pyengine.engine.persist import checkpoint as checkpoints
from pyengine.errors import CheckpointError, MissingDependencyError, PyengineError
from pyengine.files import atomic_write
from pyengine.loops import Evaluation, Loop
from pyengine.loops.steps import Clock
from pyengine.ranks import current
from pyengine.ranks.agreement import check_same_weights
from pyengine.ranks.world import all_well, first_of, gather_json
from pyengine.recipes.run.available import run_of
from pyengine.recipes.run.best import Best
from pyengine.recipes.run.interrupt import StopRequest
from pyengine.recipes.run.model_text import ModelText
from pyengine.recipes.run.ranked_folder import first_date, own_folder
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.recipes.run.run_result import RunResult, mean_of
from pyengine.recipes.run.samples import comparison_markdown, extreme_rows, sample_rows
from pyengine.recipes.run.verdicts import Verdicts
from pyengine.recipes.schema.load import plain
from pyengine.recipes.schema.recipe import Recipe
from pyengine.reports.plot import plot
from pyengine.reports.writers.jsonl import append_lines, read_lines
from pyengine.reports.writers.round_log import RoundLog
from pyengine.runtime import get_num_threads

OnReport = Callable[[dict[str, Any]], None]
OnStatus = Callable[[str], None]
_STOPPING = "stopping at the end of this round with a checkpoint; once more to stop at once"


def run(
    recipe: Recipe,
    out_dir: str | Path,
    *,
    resume: bool = False,
    allow_code: bool = False,
    allow_log: Collection[str] = (),
    on_rounds: Callable[[int], None] | None = None,
    on_report: OnReport | None = None,
    on_status: OnStatus | None = None,
) -> RunResult:
    """Run `recipe` in folder `out_dir`; see RunFolder for what it writes there.

    resume      continue from the newest verified checkpoint: same weights, to the bit, as an
                uninterrupted run
    allow_code  whether the recipe may name Python code as its reward, and loggers that send
    allow_log   loggers of the recipe that may send its metrics all the same
    on_rounds   called once, with the number of rounds of the whole run
    on_report   called with each round's report; round 0 is the evaluation before training
    on_status   called with a few words whenever something slow begins

    Whatever ends the run early (a signal, a judge that fails, a full disk) loses at most the round
    that is open: rounds that are done are saved first. Where a round was broken off within its
    updates, its weights are of no round: the newest checkpoint stands, and `resume` goes through
    the rounds since again, with the verdicts on file, to the same bits.

    Raises
        ConfigError      the recipe or the folder cannot be used
        RewardError      a round had too few valid rewards
        CheckpointError  a checkpoint is of other prompts or another pyengine; the disk refuses
    """
    start, world = time.perf_counter(), current()
    with ExitStack() as stack:
        folder = stack.enter_context(own_folder(recipe, Path(out_dir), resume, world))
        session = all_well(
            world,
            lambda: _Session(
                recipe,
                out_dir,
                allow_code,
                allow_log,
                on_report or _ignore,
                on_status or _ignore,
                folder,
            ),
        )
        if world.size > 1:
            session.say(f"{world.size} ranks; this one has {get_num_threads()} threads")
        session.date = first_date(world, session.folder, resume)
        all_well(world, lambda: session.prepare(resume))
        (on_rounds or _ignore)(session.run.rounds)
        stack.enter_context(closing(session.log))
        stop = stack.enter_context(StopRequest(lambda: session.say(_STOPPING)))
        newest = session.open_folder(resume)
        all_well(world, lambda: session.load(newest))
        session.check_same_weights()
        try:
            interrupted = session.train(stop)
        except BaseException as error:
            session.save_what_is_done(error)
            raise
        if interrupted:
            return session.result(start, interrupted=True)
        return session.finish(start)


def _ignore(_: Any) -> None:
    pass


class _Session:
    def __init__(
        self,
        recipe: Recipe,
        out_dir: str | Path,
        allow_code: bool,
        allow_log: Collection[str],
        tell: OnReport,
        say: OnStatus,
        folder: RunFolder | None = None,
    ) -> None:
        self.recipe, self.tell, self.say = recipe, tell, say
        self.world = current()
        self.folder = RunFolder(out_dir) if folder is None else folder
        self.date: datetime
        # Everything that can be wrong with the recipe's parts shows before a model is loaded or a
        # file written.
        logged = recipe.log if self.world.rank == 0 else []
        self.log = RoundLog(logged, say, None if allow_code else allow_log)
        self.run = run_of(recipe, allow_code)
        self.best = Best(recipe.early_stop)
        self.engine: Engine
        self.loop: Loop
        self.saved_round: int | None = None
        self.loaded_extremes: list[dict[str, Any]] = []

    def prepare(self, resume: bool) -> None:
        """Data become tokens, so that what is wrong with them shows before the weights load."""
        self.inputs = self.run.inputs()
        if resume:
            self.folder.require_inputs(self.inputs)
        self.run.prepare(ModelText.of(self.recipe.model, self.date), self.say)
        # The schedule is checked now that the number of steps is known.
        EngineConfig.from_options(self.recipe.engine.options(self.run.total_steps))

    def open_folder(self, resume: bool) -> Path | None:
        """The checkpoint to go on from, where there is one."""
        has_run = all_well(self.world, lambda: self.folder.open(self.recipe, resume))
        self.folder.keep_inputs(self.inputs, self.date)
        if resume and not has_run:
            self.say(f"nothing to resume in {self.folder.path}: starting from the first round")
        self.log.begin(self.folder.log, self.folder.path.absolute().name, plain(self.recipe))

        def newest() -> str | None:
            found = checkpoints.newest_verified(self.folder.checkpoints) if has_run else None
            return None if found is None else found.name

        name = first_of(self.world, newest)
        return None if name is None else self.folder.checkpoints / name

    def load(self, newest: Path | None) -> None:
        """The engine and the loop, as they begin or go on."""
        if newest is None:
            self.say(f"loading {self.recipe.model}")
            self.engine = self._fresh_engine()
            if self.engine.tokenizer is not None:
                self.engine.tokenizer.date = self.date
        else:
            self.say(f"resuming from {newest}")
            self.engine = self._resumed_engine(newest)
        plan = self._memory_plan()
        self.say(f"memory: {plan}")
        plan.check_update()
        self.loop = self.run.loop(self.engine, Verdicts(self.folder.verdicts))
        if newest is not None:
            self._load_state(newest)
        # Without a checkpoint the evaluation before training is made again, too.
        self.folder.cut(self.loop.round if newest is not None else -1)
        if self.folder.metrics.exists():
            rows = read_lines(self.folder.metrics)
            self.best.recall(rows)
            for row in rows:  # those that a log lacks
                self.log.write(row)

    def check_same_weights(self) -> None:
        """Raises RankError where a rank has read another model."""
        if self.world.size > 1:
            check_same_weights(self.world, (w for _, w in self.engine.named_weights()))

    @property
    def _learner(self) -> Any:
        """What is loaded: an engine, unless the run trains something else."""
        return getattr(self.run, "learner", Engine)

    def _memory_plan(self) -> Any:
        if hasattr(self.run, "learner"):
            return self.engine.memory_plan()
        return self.engine.memory_plan(self.run.objective)

    def _fresh_engine(self) -> Engine:
        return self._learner.from_pretrained(  # type: ignore[no-any-return]
            self.recipe.model,
            **self.recipe.engine.options(self.run.total_steps),
            seed=self.recipe.seed,
        )

    def _resumed_engine(self, path: Path) -> Engine:
        engine = self.recipe.engine
        return self._learner.load_checkpoint(  # type: ignore[no-any-return]
            path,
            device=engine.device,
            kv_tokens=engine.kv_tokens,
            micro_batch_tokens=engine.micro_batch_tokens,
            reference_cache=engine.reference_cache,
            snapshot_folder=engine.snapshot_folder,
        )

    def _load_state(self, path: Path) -> None:
        extra = self.engine.extra
        if not isinstance(extra.get("loop"), dict):
            raise CheckpointError(f"[{path}] must hold the state of a loop but holds none")
        self.loop.load_state_dict(extra["loop"])
        self.loop.last_report = extra.get("report") or {}
        self.loaded_extremes = extra.get("extremes") or []
        self.saved_round = self.loop.round

    def train(self, stop: StopRequest) -> bool:
        """Do the rounds that are left; True if a signal ended them early."""
        if self.folder.last_round() < self.loop.round:
            # The first evaluation, or that of a round that was saved before it was evaluated.
            if self.loop.round == 0:
                self.loop.last_report = {"round": 0, "step": self.engine.step_count}
            if self._stops(stop):
                self._save_checkpoint()
                return True
            self._record()
        while self.loop.round < self.run.rounds and not self.best.over:
            if self._stops(stop):
                self._save_checkpoint()
                return True
            self.loaded_extremes = []
            self.loop.run_round()
            if self._checkpoint_is_due():
                self._save_checkpoint()
            self._record()
        self._save_checkpoint()
        return False

    def _stops(self, stop: StopRequest) -> bool:
        """All ranks where one was asked to."""
        return any(gather_json(self.world, stop.requested))

    def save_what_is_done(self, error: BaseException) -> None:
        """Saves rounds that are done and not saved yet; of a failure to, `error` gets a note.

        One rank cannot: others may be anywhere. The newest checkpoint stands.
        """
        if self.world.size > 1 or self.loop.moved or self.saved_round == self.loop.round:
            return
        try:
            self._save_checkpoint()
        except PyengineError as another:
            error.add_note(f"round {self.loop.round} could not be saved: {another}")

    def _evaluation_is_due(self) -> bool:
        done, every = self.loop.round, self.run.eval_every
        return done in (0, self.run.rounds) or bool(every and done % every == 0)

    def _checkpoint_is_due(self) -> bool:
        done, every = self.loop.round, self.recipe.checkpoint_every
        return done == self.run.rounds or (every > 0 and done % every == 0)

    def _record(self) -> None:
        """The last round's evaluation, where one is due, and its line of the metrics."""
        row = dict(self.loop.last_report)
        if self.run.evaluates and self._evaluation_is_due():
            self.say("evaluating what is held out")
            clock = Clock()
            evaluation = clock("eval", self.loop.evaluate)
            row |= evaluation.metrics() | {"time/eval_s": clock.seconds["eval"]}
            sampled = getattr(evaluation, "sampled", evaluation)
            if isinstance(sampled, Evaluation):
                append_lines(self.folder.samples, sample_rows(self.loop.round, sampled))
            if self.best.see(self.loop.round, row):
                self._save_checkpoint()
        if extremes := self._extremes():
            append_lines(self.folder.round_samples, extremes)
        append_lines(self.folder.metrics, [row])
        self.log.write(row)
        self.tell(row)

    def _extremes(self) -> list[dict[str, Any]]:
        """Samples of the last round, or of the one that was loaded."""
        groups, feedback = self.loop.last_judged
        found = extreme_rows(self.loop.round, groups, feedback)
        return found or self.loaded_extremes

    def _save_checkpoint(self) -> None:
        if self.saved_round != self.loop.round:
            path = self.folder.checkpoint(self.loop.round)
            extra = {
                "loop": self.loop.state_dict(),
                "report": self.loop.last_report,
                "extremes": self._extremes(),
            }
            self.engine.save_checkpoint(path, extra=extra)
            self.saved_round = self.loop.round
        if self.world.rank == 0:  # of a round that was saved before, too: it may have ended here
            kept = None if self.best.round is None else self.folder.checkpoint(self.best.round)
            checkpoints.prune(self.folder.checkpoints, self.recipe.keep_checkpoints, kept)

    def result(self, start: float, interrupted: bool = False) -> RunResult:
        summary = RunResult(
            self.folder.path,
            self.loop.round,
            self.engine.step_count,
            time.perf_counter() - start,
            interrupted,
        )
        if interrupted or not self.folder.samples.exists():
            return summary
        means = {
            round_number: {row["index"]: row["mean"] for row in rows}
            for round_number, rows in self._samples().items()
        }
        first, last = means.get(0, {}), means.get(self.loop.round, {})
        both = [
            (first[i], last[i])
            for i in sorted(first.keys() & last.keys())
            if first[i] is not None and last[i] is not None
        ]
        return dataclasses.replace(
            summary,
            before=mean_of(list(first.values())),
            after=mean_of(list(last.values())),
            gain=mean_of([after - before for before, after in both]),
        )

    def _samples(self) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = {}
        for row in read_lines(self.folder.samples):
            found.setdefault(row["round"], []).append(row)
        return found

    def finish(self, start: float) -> RunResult:
        """Write the model, before anything else can fail; then plot, samples and result.json."""
        if self.world.rank > 0:
            return self.result(start)
        self.say(f"saving the model to {self.folder.model}")
        chosen = self.engine
        if self.best.round is not None and self.best.round != self.loop.round:
            self.say(f"the best evaluation was that of round {self.best.round}")
            chosen = self._learner.load_checkpoint(self.folder.checkpoint(self.best.round))
        chosen.save_pretrained(self.folder.model)
        model_round = self.loop.round if self.best.round is None else self.best.round
        result = dataclasses.replace(self.result(start), model_round=model_round)
        if self.folder.samples.exists():
            text = comparison_markdown(read_lines(self.folder.samples), self.loop.round)
            atomic_write(self.folder.samples_markdown, text)
        try:
            plot(read_lines(self.folder.metrics), self.folder.plot, self.recipe.model)
        except MissingDependencyError as error:
            self.say(f"no plot: {error}")  # hours of training are not lost for a picture
        result = dataclasses.replace(result, seconds=time.perf_counter() - start)
        data = {k: v for k, v in dataclasses.asdict(result).items() if k != "folder"}
        atomic_write(self.folder.result, json.dumps(data, indent=2) + "\n")
        return result
