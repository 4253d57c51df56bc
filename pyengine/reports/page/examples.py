"""Which samples are shown: the best, the worst and the most changed of each evaluation, and the
best and the worst of each round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyengine.recipes.schema.prompt_files import prompt_text
from pyengine.reports.page.findings.finding import signed
from pyengine.reports.page.record import Row, RunRecord, number

SHOWN = 3  # samples of a kind
MOST_STAGES = 8  # evaluations, or rounds; of more, these many from the first to the last
LONGEST = 1200  # characters of a text


@dataclass(frozen=True)
class Said:
    """One response and its reward, as text."""

    when: str
    reward: str
    text: str


@dataclass(frozen=True)
class Example:
    """A prompt with a response, or with the earlier and the later one."""

    prompt: str
    responses: list[Said]


@dataclass(frozen=True)
class Shelf:
    """Examples under one heading."""

    title: str
    examples: list[Example]


@dataclass(frozen=True)
class Stage:
    """One evaluation, or one round."""

    title: str
    shelves: list[Shelf]


@dataclass(frozen=True)
class Stages:
    """left_out  how many there are beside those shown"""

    shown: list[Stage]
    left_out: int


def evaluations(run: RunRecord) -> Stages:
    """Of the evaluations whose samples are kept; changes are against the first of them."""
    by_round = _by_round(run.samples)
    if not by_round:
        return Stages([], 0)
    first = min(by_round)
    chosen = _spread(sorted(by_round))
    stages = []
    for place in chosen:
        top, bottom = _extremes(by_round[place])
        shelves = [Shelf("Highest reward", top), Shelf("Lowest reward", bottom)]
        if place != first:
            changed = _most_changed(by_round[first], by_round[place], _when(first), _when(place))
            shelves.append(Shelf(f"Most changed since {_since(first)}", changed))
        stages.append(Stage(_when(place).capitalize(), [s for s in shelves if s.examples]))
    return Stages(stages, len(by_round) - len(chosen))


def training_rounds(run: RunRecord) -> Stages:
    """Of the training samples that were kept of each round."""
    by_round = _by_round(run.round_samples)
    chosen = _spread(sorted(by_round))
    stages = []
    for place in chosen:
        shelves = []
        for side, title in (("top", "Highest reward"), ("bottom", "Lowest reward")):
            rows = [row for row in by_round[place] if row.get("side") == side]
            examples = [
                _example(row.get("prompt"), row.get("completion"), number(row.get("reward")))
                for row in rows
            ]
            shelves.append(Shelf(title, examples))
        stages.append(Stage(f"Round {place}", [s for s in shelves if s.examples]))
    return Stages(stages, len(by_round) - len(chosen))


def _by_round(rows: Sequence[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["round"], []).append(row)
    return found


def _spread(rounds: list[int]) -> list[int]:
    """The first, the last, and others between them at even distances."""
    last = len(rounds) - 1
    if last < MOST_STAGES:
        return rounds
    return [rounds[round(i * last / (MOST_STAGES - 1))] for i in range(MOST_STAGES)]


def _extremes(rows: Sequence[Row]) -> tuple[list[Example], list[Example]]:
    """Of all responses of an evaluation; none is in both."""
    known = [
        (reward, row, text)
        for row in rows
        for text, given in zip(row.get("completions", ()), row.get("rewards", ()), strict=False)
        if (reward := number(given)) is not None
    ]
    order = sorted(known, key=lambda each: -each[0])
    top = order[: min(SHOWN, -(-len(order) // 2))]
    bottom = order[len(top) :][-SHOWN:]
    best, worst = (
        [_example(row.get("prompt"), text, reward) for reward, row, text in part]
        for part in (top, bottom[::-1])
    )
    return best, worst


def _most_changed(
    before: Sequence[Row], after: Sequence[Row], first: str, now: str
) -> list[Example]:
    """Prompts whose mean reward changed most, each with its first response of then and of now."""
    earlier = {row.get("index"): row for row in before}
    changes = []
    for row in after:
        other = earlier.get(row.get("index"))
        new, old = number(row.get("mean")), None if other is None else number(other.get("mean"))
        if other is not None and new is not None and old is not None and new != old:
            changes.append((abs(new - old), other, row))
    changes.sort(key=lambda change: -change[0])
    return [
        Example(_prompt(row.get("prompt")), [_first(first, other), _first(now, row)])
        for _, other, row in changes[:SHOWN]
    ]


def _first(when: str, row: Row) -> Said:
    texts, rewards = row.get("completions") or [None], row.get("rewards") or [None]
    mean = number(row.get("mean"))
    of_mean = "" if mean is None or len(rewards) < 2 else f", mean of {len(rewards)} {signed(mean)}"
    return Said(when, f"{_reward(number(rewards[0]))}{of_mean}", _shown(texts[0]))


def _example(prompt: Any, text: Any, reward: float | None) -> Example:
    return Example(_prompt(prompt), [Said("", _reward(reward), _shown(text))])


def _prompt(prompt: Any) -> str:
    return _shown("" if prompt is None else prompt_text(prompt))


def _reward(reward: float | None) -> str:
    return "no reward" if reward is None else signed(reward)


def _shown(text: Any) -> str:
    whole = text if isinstance(text, str) else ""
    if len(whole) <= LONGEST:
        return whole or "(empty)"
    return f"{whole[:LONGEST]} … ({len(whole) - LONGEST} characters more)"


def _when(place: int) -> str:
    return "before training" if place == 0 else f"after round {place}"


def _since(place: int) -> str:
    return "training began" if place == 0 else f"round {place}"
