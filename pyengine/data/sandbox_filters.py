"""The filters and tests that a sandboxed template may use, each within its rendering's budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Context

from pyengine.data.budget import Budget

_NAMES = """
    abs attr batch capitalize center count d default dictsort e escape first float format groupby
    indent int items join last length list lower map max min reject rejectattr replace reverse
    round safe select selectattr slice sort string title trim truncate unique upper
"""
# Those that go over all their values before anything else can count them.
_ITERATING = frozenset(("batch", "list", "map", "reject", "select", "slice", "sort", "unique"))
# Names that no template can spell.
BUDGET, DATE = " budget", " date"


def budget_of(context: Context) -> Budget:
    """The budget of the rendering that `context` belongs to."""
    budget: Budget = context.parent[BUDGET]
    return budget


def metered_filters() -> dict[str, Any]:
    """name -> filter: jinja2's own behind a check of what it would make, and those made here."""
    metered = {name: _metered(name, FILTERS[name]) for name in _NAMES.split()}
    return metered | {"sum": _sum, "tojson": _tojson}


def metered_tests(tests: Mapping[str, Any]) -> dict[str, Any]:
    """The same tests, each a step of the budget."""
    return {name: _metered_test(test) for name, test in tests.items()}


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A built-in filter whose inputs, cost and result are checked."""
    passes = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @jinja2.pass_context
    def metered(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.step()
        budget.inputs((*args, *kwargs.values()))
        if name in ("center", "format", "indent", "join", "replace", "string", "truncate"):
            budget.inputs(x for x in (value,) if not isinstance(x, int))
        if name == "replace":
            old_new = (*args, kwargs.get("old", ""), kwargs.get("new", ""))
            budget.replace(value, *old_new[:2])
        elif name == "join" and not (args[1:] or "attribute" in kwargs):
            value = budget.join(args[0] if args else kwargs.get("d", ""), value)
        elif name == "format":
            budget.format(str(value), (*args, *kwargs.values()))
        elif name == "indent":
            budget.indent(value, args[0] if args else kwargs.get("width", 4))
        elif name in _ITERATING:
            value = budget.rounds(value)
        first = {
            "context": context,
            "eval_context": context.eval_ctx,
            "environment": context.environment,
        }
        front = (first[passes],) if passes else ()
        result = function(*front, value, *args, **kwargs)
        if name in ("batch", "slice"):  # a generator of lists, which may be filled up
            result = [budget.admit(part) for part in budget.rounds(result)]
        return budget.admit(result)

    return metered


def _metered_test(function: Callable[..., Any]) -> Callable[..., Any]:
    passes = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @jinja2.pass_context
    def metered(context: Context, *args: Any, **kwargs: Any) -> Any:
        budget_of(context).step()
        front = (context.environment,) if passes else ()
        return function(*front, *args, **kwargs)

    return metered


@jinja2.pass_context
def _sum(context: Context, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    """As jinja2's, but each partial sum is a value of its own: lists and integers may grow."""
    budget = budget_of(context)
    budget.inputs((attribute, start))
    if isinstance(start, (str, bytes)):
        raise TypeError("sum cannot add texts: use join")
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    total = start
    for item in budget.rounds(value):
        total = budget.admit(total + item)
    return total


@jinja2.pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> Any:
    """As chat templates expect it: plain JSON, where jinja2's own escapes HTML."""
    budget = budget_of(context)
    budget.step()
    budget.inputs((value, indent))
    width = len(indent) if isinstance(indent, str) else int(indent or 0)
    budget.allow(budget.size(value) * (1 + width + sum(map(len, separators or ()))))
    return budget.admit(
        json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )
    )
