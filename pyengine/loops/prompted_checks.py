"""Settings of loops over prompts that cannot be: found when a loop is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyengine.errors import ConfigError
from pyengine.loops.measures import check_measures
from pyengine.preferences.binding import within
from pyengine.preferences.sources.adapting import LearnsPairs, has_state
from pyengine.preferences.sources.needs import check_reads, make_ready

if TYPE_CHECKING:
    from pyengine.preferences.allocations.allocation import Allocation


def check_counts(loop: Any, **minima: int) -> None:
    """Raises ConfigError for an attribute that is no integer of at least so much."""
    for name, minimum in minima.items():
        value = getattr(loop, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ConfigError(
                f"[{type(loop).__name__}] {name} must be an integer >= {minimum} but is {value!r}"
            )


def check_choice(loop: Any, name: str, *choices: str) -> None:
    """Raises ConfigError for an attribute that is none of the choices."""
    if getattr(loop, name) not in choices:
        raise ConfigError(
            f"[{type(loop).__name__}] {name} must be one of {', '.join(choices)} but is "
            f"{getattr(loop, name)!r}"
        )


def check_fraction(loop: Any, name: str) -> None:
    """Raises ConfigError for an attribute that is no number in [0, 1]."""
    value = getattr(loop, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f"[{type(loop).__name__}] {name} must be in [0, 1] but is {value!r}")


def check_prompted(loop: Any, allocation: Allocation | None) -> None:
    """What every loop over prompts checks. Raises ConfigError."""
    who = type(loop).__name__
    if not loop.prompts:
        raise ConfigError(f"[{who}] prompts must not be empty")
    check_counts(loop, prompts_per_round=1, epochs=1, eval_every=0)
    if loop.batch_size is not None:
        check_counts(loop, batch_size=1)
    check_fraction(loop, "min_valid_fraction")
    if loop.eval_every and not loop.eval_prompts:
        raise ConfigError(
            f"[{who}] eval_every = {loop.eval_every} needs eval_prompts but there are none"
        )
    _check_columns(loop)
    _check_sources(loop)
    learns = isinstance(loop.source, LearnsPairs) and loop.source.learns
    if learns and not hasattr(loop, "pairing"):
        raise ConfigError(
            f"[{who}] source must not learn from pairs, of which the loop makes none, but "
            f"{getattr(loop.source, 'name', loop.source)} does"
        )
    check_measures(loop.eval_measures, loop.eval_source, loop.eval_sampling.n, loop.has_reference)
    for name, part in (("sampler", loop.sampler), ("allocation", allocation)):
        if part is not None and loop.draws_itself:
            raise ConfigError(
                f"[{who}] {name} must be None, since the loop says who samples, but is {part}"
            )
    if loop.sampler is not None and allocation is not None:
        raise ConfigError(
            f"[{who}] allocation must be None beside a sampler, which draws as many samples as it "
            f"needs, but is {allocation}"
        )


def _check_sources(loop: Any) -> None:
    """Columns that the parts read are there, and so is all else that they need to judge; a source
    that learns is the loop's own."""
    for part in within(loop.source):
        if part is not loop.source and has_state(part):
            raise ConfigError(
                f"[{type(loop).__name__}] {getattr(part, 'name', part)} must be the source itself, "
                "which the loop tells of every round, but is within "
                f"{getattr(loop.source, 'name', loop.source)}"
            )
    parts = [getattr(loop, name, None) for name in ("source", "sampler", "pairing", "selection")]
    added = getattr(loop.sampler, "adds_columns", ())
    check_reads(parts, {*(loop.columns or ()), *added}, "the rows")
    if loop.eval_prompts:
        check_reads([loop.eval_source], {*(loop.eval_columns or ())}, "the held-out rows")
    make_ready(*parts, loop.eval_source)


def _check_columns(loop: Any) -> None:
    for kind, columns, prompts in (
        ("columns", loop.columns, loop.prompts),
        ("eval_columns", loop.eval_columns, loop.eval_prompts),
    ):
        for name, values in (columns or {}).items():
            if len(values) != len(prompts):
                raise ConfigError(
                    f"[{type(loop).__name__}] {kind}[{name!r}] must have one value a prompt "
                    f"({len(prompts)}) but has {len(values)}"
                )
