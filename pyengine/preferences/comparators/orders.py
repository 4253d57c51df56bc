"""Both orders of two responses: which questions are asked, and what the answers come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyengine.errors import RequestError
from pyengine.preferences.comparators.comparator import Compared, Duel
from pyengine.preferences.feedback import MAX_ERRORS
from pyengine.preferences.groups import Group

# P that what stands first is better, that what stands second is, and perhaps that neither is.
Answer = Sequence[float]


def turned(duel: Duel) -> Duel:
    """The same two responses, the second in the first place."""
    return Duel(duel.group, duel.second, duel.first)


def check_duels(who: str, groups: Sequence[Group], duels: Sequence[Duel]) -> None:
    """Raises RequestError for a duel of responses that are not there, or of one with itself."""
    for i, (g, first, second) in enumerate(duels):
        size = len(groups[g].responses) if 0 <= g < len(groups) else 0
        if not (0 <= first < size and 0 <= second < size) or first == second:
            raise RequestError(
                f"[{who}] duels[{i}] must be of two responses of a group but is of {first} and "
                f"{second} of group {g}"
            )


def asked_orders(duels: Sequence[Duel], both: bool) -> list[Duel]:
    """Every question once, prompt by prompt: a duel, and where `both` the same turned round.

    Of one prompt's questions first one of each first response, then the next of each: questions
    that begin alike do not fall into one step of the model, and the later find what they share.
    """
    wanted = dict.fromkeys(duels)
    if both:
        wanted |= dict.fromkeys(turned(duel) for duel in duels)
    seen: dict[tuple[int, int], int] = {}
    places: dict[Duel, tuple[int, int, int]] = {}
    for duel in wanted:
        nth = seen.get((duel.group, duel.first), 0)
        seen[duel.group, duel.first] = nth + 1
        places[duel] = (duel.group, nth, duel.first)
    return sorted(places, key=places.__getitem__)


def verdicts(
    who: str,
    duels: Sequence[Duel],
    answers: Mapping[Duel, Answer],
    why: Mapping[Duel, str],
    *,
    both: bool,
    tie_margin: float,
    counts: dict[str, float],
) -> Compared:
    """P(first is preferred to second) of each duel: the mean of both orders, or its own answer.

    A tie has P 1/2: where P is that, or less than tie_margin from it, or neither is likelier than
    each. A duel that lacks an answer has no verdict.

    answers  of questions
    why      others have none
    counts   to which "ties" and "swap_disagreements" of pairs, "both_orders", the pairs that were
             answered in both, and "failures" of duels, are added
    """
    found: list[float | None] = []
    errors: list[str] = []
    pairs: set[Duel] = set()  # that have been counted
    for i, duel in enumerate(duels):
        orders = [duel, turned(duel)] if both else [duel]
        missing = next((each for each in orders if each not in answers), None)
        if missing is not None:
            counts["failures"] += 1
            errors.append(f"[{who}] duels[{i}], {tuple(duel)}: {why[missing]}")
            found.append(None)
            continue
        here, there = answers[duel], answers[orders[-1]]
        first, second, *even = _mean_of_orders(here, there) if both else here
        p = first_place([first, second, *even])
        is_tie = p == 0.5 or abs(p - 0.5) < tie_margin or max(even, default=0) > max(first, second)
        found.append(0.5 if is_tie else p)
        if duel in pairs or turned(duel) in pairs:
            continue
        pairs.add(duel)
        counts["ties"] += is_tie
        counts["both_orders"] += both
        counts["swap_disagreements"] += (
            both and (first_place(here) - 0.5) * (first_place(there) - 0.5) > 0
        )
    return Compared(found, errors[:MAX_ERRORS], counts)


def first_place(answer: Answer) -> float:
    """P that what stands first is preferred; of neither a half."""
    return answer[0] + (answer[2] / 2 if len(answer) > 2 else 0.0)


def _mean_of_orders(here: Answer, there: Answer) -> list[float]:
    """What is said of the duel, by its own answer and by that of the duel turned round."""
    as_here = [there[1], there[0], *there[2:]]
    return [(a + b) / 2 for a, b in zip(here, as_here, strict=True)]
