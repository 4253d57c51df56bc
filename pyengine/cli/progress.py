"""Progress of a run: a bar with live metrics on a terminal, one line a round elsewhere.

And of one long call: a bar on a terminal, nothing elsewhere.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from pyengine.ranks import current
from pyengine.reports.table import format_value

Report = Mapping[str, Any]

_LIVE = (
    ("reward", "objective/scores", "+.3f"),
    ("loss", "loss", ".4f"),
    ("kl", "objective/kl", ".2f"),
    ("margin", "rewards/margins", "+.3f"),
    ("held-out", "eval/objective/scores", "+.3f"),
    ("held-out loss", "eval/loss", ".4f"),
    ("tok/s", "tokens_per_s", ".0f"),
)


def silent_after_first(stream: TextIO) -> TextIO:
    """The stream on the first rank, nothing on others, which have nothing else to say."""
    return stream if current().rank == 0 else io.StringIO()


class Progress:
    """Shows the reports and status words of one run on `stream` (default: stderr).

    rounds  of the whole run, once it has begun
    """

    def __init__(self, rounds: int = 0, stream: TextIO | None = None) -> None:
        self.rounds = rounds
        self.stream = stream or sys.stderr
        self._bar: Any = None
        self._started = time.perf_counter()
        self._first_round: int | None = None

    def __enter__(self) -> Progress:
        if self.stream.isatty():
            self._bar = tqdm(total=self.rounds, unit="round", file=self.stream, dynamic_ncols=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, rounds: int) -> None:
        """The run is known to have so many rounds."""
        self.rounds = rounds
        if self._bar is not None:
            self._bar.total = rounds
            self._bar.refresh()

    def status(self, words: str) -> None:
        """A few words on what begins now."""
        if self._bar is not None:
            self._bar.write(words, file=self.stream)
        else:
            print(words, file=self.stream, flush=True)

    def report(self, row: Report) -> None:
        """A completed round; the time left is estimated from the rounds seen so far."""
        done = int(row["round"])
        if self._bar is not None:
            if self._first_round is None:  # a resumed run: the rounds before took no time here
                self._bar.initial = self._bar.n = max(done - 1, 0)
                self._first_round = done
            self._bar.n = done
            self._bar.set_postfix_str(live_line(row))
            return
        if self._first_round is None:
            self._first_round, self._started = done, time.perf_counter()
        print(
            f"round {done}/{self.rounds}  {live_line(row)}{self._eta(done)}",
            file=self.stream,
            flush=True,
        )

    def _eta(self, done: int) -> str:
        seen = done - (self._first_round or 0)
        if seen <= 0 or done >= self.rounds:
            return ""
        seconds = (time.perf_counter() - self._started) / seen * (self.rounds - done)
        return f"  eta {int(seconds) // 60}:{int(seconds) % 60:02d}"


def live_line(row: Report) -> str:
    """The metrics of one round that people watch, those that it has; a loss where no reward is."""
    return "  ".join(
        f"{heading} {format_value(row[name], spec)}"
        for heading, name, spec in _LIVE
        if row.get(name) is not None
        and not (name == "loss" and row.get("objective/scores") is not None)
    )


class CallBar:
    """A bar for one call of the engine, on `stream` (default: stderr) if that is a terminal.

    `sampled` and `scored` are what `Engine.generate` and `Engine.score` take as `progress`. The bar
    goes away at the end: what is left is the command's output.
    """

    def __init__(self, total: int, unit: str, stream: TextIO | None = None) -> None:
        self.total, self.unit, self.stream = total, unit, stream or sys.stderr
        self._bar: Any = None
        self._started = time.perf_counter()

    def __enter__(self) -> CallBar:
        if self.stream.isatty():
            self._started = time.perf_counter()
            self._bar = tqdm(
                total=self.total,
                unit=f" {self.unit}",
                file=self.stream,
                dynamic_ncols=True,
                leave=False,
                miniters=0,  # tokens are counted between two sequences, too
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def sampled(self, tokens: int, finished: int, total: int) -> None:
        """Tokens sampled, sequences finished, sequences in all."""
        if self._bar is not None:
            rate = tokens / max(time.perf_counter() - self._started, 1e-9)
            self._bar.set_postfix_str(f"{tokens} tokens, {rate:.0f} tok/s", refresh=False)
            self.scored(finished, total)

    def scored(self, done: int, total: int) -> None:
        """Groups done, groups in all."""
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)
