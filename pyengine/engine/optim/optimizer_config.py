"""Settings of an optimizer: its rule, the schedule of its rate, and clipping."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pyengine.engine.optim.adamw import BITS, AdamW
from pyengine.engine.optim.available import OPTIMIZERS
from pyengine.engine.optim.update_rule import UpdateRule
from pyengine.errors import ConfigError

Schedule = Literal["constant", "linear", "cosine"]
# Options that stand for AdamW's fields where no `optimizer` is given: option -> field.
ADAMW_OPTIONS = {
    "learning_rate": "learning_rate",
    "betas": "betas",
    "eps": "eps",
    "weight_decay": "weight_decay",
    "optimizer_bits": "bits",
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How weights are moved. Raises ConfigError naming the field and its value.

    rule           the kind of optimizer, with its hyperparameters and peak learning rate
    schedule       after warm-up: "constant", or "linear" / "cosine" down to 0 at total_steps
    warmup_steps   steps over which the rate rises linearly; the first step already moves
    total_steps    steps of the whole run; needed by "linear" and "cosine"
    max_grad_norm  gradients are scaled down to this global norm; None does not clip
    """

    rule: UpdateRule = dataclasses.field(default_factory=AdamW)
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        checks = {
            "schedule": (
                self.schedule in get_args(Schedule),
                f"one of {', '.join(get_args(Schedule))}",
            ),
            "warmup_steps": (
                type(self.warmup_steps) is int and self.warmup_steps >= 0,
                "an integer >= 0",
            ),
            "max_grad_norm": (
                self.max_grad_norm is None
                or (isinstance(self.max_grad_norm, (int, float)) and self.max_grad_norm > 0),
                "> 0 or None",
            ),
        }
        for name, (valid, rule) in checks.items():
            if not valid:
                raise ConfigError(
                    f"[optimizer] {name} must be {rule} but is {getattr(self, name)!r}"
                )
        if self.schedule == "constant":
            return
        if not isinstance(self.total_steps, int) or self.total_steps <= self.warmup_steps:
            raise ConfigError(
                f"[optimizer] schedule {self.schedule!r} needs an integer total_steps > "
                f"warmup_steps ({self.warmup_steps}) but total_steps is {self.total_steps}"
            )

    @property
    def learning_rate(self) -> float:
        """The peak."""
        return self.rule.learning_rate

    @property
    def optimizer_bits(self) -> int:
        """Of each number that is kept for a weight."""
        return self.rule.state_bits

    def rate(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        peak = self.rule.learning_rate
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return peak
        assert self.total_steps is not None
        progress = min((step - self.warmup_steps) / (self.total_steps - self.warmup_steps), 1.0)
        if self.schedule == "linear":
            return peak * (1 - progress)
        return peak * 0.5 * (1 + math.cos(math.pi * progress))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Of options as `Engine.from_pretrained` takes them: a rule as `optimizer`, or AdamW's own
        fields; and the schedule and clipping.

        optimizer  an UpdateRule; or as a file has it, a name, or a mapping of "name" and fields
        """
        rule = _rule_of(options)
        shared = {n: options[n] for n in SCHEDULE_OPTIONS if n in options}
        return cls(rule, **shared)

    def saved(self) -> dict[str, Any]:
        """As JSON has it: the rule's name and fields, and the others."""
        own = {n: getattr(self, n) for n in SCHEDULE_OPTIONS}
        return {"name": self.rule.name} | dataclasses.asdict(self.rule) | own

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> Self:
        """Of what `saved` gave, also before there were several rules."""
        given = dict(saved)
        own = {n: given.pop(n) for n in SCHEDULE_OPTIONS}
        if "name" not in given:
            given = {ADAMW_OPTIONS[option]: value for option, value in given.items()}
        return cls(OPTIMIZERS.make(given.pop("name", AdamW.name), **given), **own)


SCHEDULE_OPTIONS = tuple(f.name for f in dataclasses.fields(OptimizerConfig) if f.name != "rule")
OPTIMIZER_OPTIONS = ("optimizer", *ADAMW_OPTIONS, *SCHEDULE_OPTIONS)


def _rule_of(options: Mapping[str, Any]) -> UpdateRule:
    flat = [name for name in ADAMW_OPTIONS if name in options]
    asked = options.get("optimizer")
    if asked is None:
        bits = options.get("optimizer_bits", 32)
        if not BITS.holds(bits):
            raise ConfigError(f"[optimizer] optimizer_bits must be {BITS.text} but is {bits!r}")
        return AdamW(**{ADAMW_OPTIONS[name]: options[name] for name in flat})
    if flat:
        raise ConfigError(
            f"[optimizer] {flat[0]} must be a field of `optimizer` where that is given but is an "
            f"option beside it: {options[flat[0]]!r:.80}"
        )
    if isinstance(asked, str):
        return OPTIMIZERS.make(asked)
    if isinstance(asked, Mapping) and isinstance(asked.get("name"), str):
        fields = {str(name): value for name, value in asked.items() if name != "name"}
        return OPTIMIZERS.make(asked["name"], **fields)
    if not isinstance(asked, UpdateRule):
        raise ConfigError(
            "[optimizer] optimizer must be one of pe.optim, a name, or a name with fields but is "
            f"{asked!r:.200}"
        )
    return asked
