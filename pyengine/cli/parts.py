"""`pyengine parts`: what a recipe can name, with each part's fields."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from typing import Any, get_type_hints

from pyengine.cli.arguments import Commands
from pyengine.engine.optim.available import OPTIMIZERS
from pyengine.errors import ConfigError
from pyengine.evaluation.available import EVALUATIONS
from pyengine.objectives.available import OBJECTIVES
from pyengine.objectives.core.reward_objective import REWARD_OBJECTIVES
from pyengine.preferences.allocations.available import ALLOCATIONS
from pyengine.preferences.auxiliaries.available import AUXILIARIES
from pyengine.preferences.comparators.available import COMPARATORS
from pyengine.preferences.pairings.available import PAIRINGS
from pyengine.preferences.rankings.available import RANKINGS
from pyengine.preferences.selections.available import SELECTIONS
from pyengine.preferences.sources.available import SOURCES
from pyengine.recipes.schema.load import RECIPES
from pyengine.registry import Registry
from pyengine.reports.writers.available import WRITERS
from pyengine.samplers.available import SAMPLERS

_REGISTRIES: tuple[Registry[Any], ...] = (
    RECIPES,
    OBJECTIVES,
    SAMPLERS,
    SOURCES,
    COMPARATORS,
    RANKINGS,
    PAIRINGS,
    SELECTIONS,
    ALLOCATIONS,
    AUXILIARIES,
    REWARD_OBJECTIVES,
    EVALUATIONS,
    OPTIMIZERS,
    WRITERS,
)


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "parts", parents=[common], help="list what a recipe can name, or show one part's fields"
    )
    kinds = [registry.kind for registry in _REGISTRIES]
    parser.add_argument("kind", nargs="?", choices=kinds, help="which kind of part")
    parser.add_argument("name", nargs="?", help="which part of that kind")
    parser.set_defaults(run=parts)


def parts(args: argparse.Namespace) -> int:
    """Print the names of each kind, or one part's description and fields."""
    if args.name is not None:
        print(describe(_registry(args.kind), args.name))
        return 0
    for registry in _REGISTRIES if args.kind is None else (_registry(args.kind),):
        print(f"{registry.kind}:")
        for cls in registry:
            doc = (inspect.getdoc(cls) or "").splitlines()[0]
            print(f"  {cls.name:<22} {doc}")
    return 0


def describe(registry: Registry[Any], name: str) -> str:
    """A part's docstring, and each field with its default and rule; then the same of required
    fields that have fields of their own. Raises ConfigError.
    """
    cls, fields = registry.class_of(name), registry.fields(name)
    lines = [inspect.getdoc(cls) or "", "", *map(_line, fields.values())]
    hints = get_type_hints(cls)
    for field in fields.values():
        inner = hints[field.name]
        if _is_required(field) and dataclasses.is_dataclass(inner):
            own = [f for f in dataclasses.fields(inner) if f.init]
            lines += ["", f"{field.name}: {inspect.getdoc(inner)}", "", *map(_line, own)]
    return "\n".join(lines).rstrip()


def _line(field: dataclasses.Field[Any]) -> str:
    default = "required" if _is_required(field) else f"default {_default(field)!r}"
    rule = field.metadata.get("rule")
    return f"  {field.name}: {default}{'' if rule is None else f', {rule.text}'}"


def _registry(kind: str) -> Registry[Any]:
    for registry in _REGISTRIES:
        if registry.kind == kind:
            return registry
    raise ConfigError(f"[parts] kind must be one of the registries but is {kind!r}")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    none = dataclasses.MISSING
    return field.default is none and field.default_factory is none


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    assert field.default_factory is not dataclasses.MISSING
    return field.default_factory()
