"""A jinja2 sandbox for untrusted chat templates: no way into Python, and a bounded cost.

jinja2's immutable sandbox closes the way to Python's internals. On top of it, only the methods
and filters that templates need exist, and the template's tree is rewritten so that each loop,
output and value made passes the `Budget` of its rendering.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from pyengine.data.budget import Budget, BudgetError

MAX_TEMPLATE_CHARS = 512 * 1024
MAX_RANGE = 100_000

_STR_METHODS = """
    capitalize count endswith find format index isalnum isalpha isascii isdecimal isdigit islower
    isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace
    rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper
"""
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STR_METHODS.split()),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
}
_FILTERS = """
    abs capitalize count d default dictsort e escape first float groupby int items join last length
    list lower map max min reject rejectattr replace reverse round safe select selectattr sort
    string title trim unique upper
"""
# A name that no template can spell.
_BUDGET = " budget"


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Renders a template of `compile_template` within a fresh budget.

    Raises: whatever jinja2 or an expression in the template raises; BudgetError.
    """
    return template.render({**variables, _BUDGET: Budget()})


@functools.lru_cache(maxsize=32)
def compile_template(source: str) -> jinja2.Template:
    """A template that `render` can run.

    Raises: jinja2.TemplateError, SyntaxError, RecursionError; BudgetError where it is too long.
    """
    if len(source) > MAX_TEMPLATE_CHARS:
        raise BudgetError(f"it has {len(source)} characters, more than {MAX_TEMPLATE_CHARS}")
    environment = _environment()
    tree = _Metered().visit(environment.parse(source))
    # Only parents may come first in a template that extends one; there are none here.
    code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def _budget(context: Context) -> Budget:
    budget: Budget = context.parent[_BUDGET]
    return budget


# ---------------------------------------------------------------- the rewritten tree


class _Metered(NodeTransformer):
    """Sends loops, outputs and all that makes or searches large values through the budget."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        node = self.generic_visit(node)
        match node:
            case nodes.For(recursive=True):
                raise SecurityError("recursive loops are not supported")
            case nodes.For():
                node.iter = _through("@rounds", node.iter)
            case nodes.Output():
                node.nodes = [_through("@emit", child) for child in node.nodes]
            case nodes.Concat():
                return _through("@concat", nodes.List(node.nodes, lineno=node.lineno))
            case nodes.Getitem(arg=nodes.Slice()) | nodes.Tuple(ctx="load"):
                return _through("@admit", node)
            case nodes.List() | nodes.Dict() | nodes.Compare():
                return _through("@admit", node)
        return node


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context
def _emit(context: Context, value: Any) -> str:
    return _budget(context).emit(value)


@jinja2.pass_context
def _admit(context: Context, value: Any) -> Any:
    return _budget(context).admit(value)


@jinja2.pass_context
def _rounds(context: Context, values: Any) -> Any:
    return _budget(context).rounds(values)


@jinja2.pass_context
def _concat(context: Context, values: list[Any]) -> Any:
    budget = _budget(context)
    return budget.admit("".join(map(str, budget.join("", values))))


# ---------------------------------------------------------------- the environment


class _Environment(ImmutableSandboxedEnvironment):
    """Every operator that can make a large value, and every call, passes the budget."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        budget.step()
        budget.inputs(x for x in (left, right) if not isinstance(x, int))
        if operator == "*":
            budget.multiply(left, right)
        elif operator == "**":
            budget.power(left, right)
        elif operator == "%" and isinstance(left, str):
            budget.format(left, right if isinstance(right, tuple) else (right,))
        return budget.admit(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.step()
        if isinstance(obj, Macro) or _is_global(obj):
            return super().call(context, obj, *args, **kwargs)
        # str.format comes wrapped by the sandbox.
        method = getattr(obj, "__wrapped__", obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, LoopContext) and name in ("cycle", "changed"):
            return super().call(context, obj, *args, **kwargs)
        if name not in _METHODS.get(type(owner), ()):
            raise SecurityError(f"{name or type(obj).__name__} cannot be called")
        budget.inputs((*args, *kwargs.values()))
        if name == "replace":
            budget.replace(owner, *(*args, "", "")[:2])
        elif name == "join":
            args = tuple(budget.join(owner, values) for values in args)
        elif name == "format":
            budget.format(str(owner), (*args, *kwargs.values()))
        result = super().call(context, obj, *args, **kwargs)
        # Views have no size of their own that could be measured.
        if isinstance(owner, dict) and name != "get":
            result = list(result)
        return budget.admit(result, is_new=isinstance(owner, str))


def _is_global(obj: Any) -> bool:
    return any(obj is known for known in _GLOBALS.values())


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A built-in filter whose inputs, cost and result are checked."""
    passes = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @jinja2.pass_context
    def metered(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.step()
        budget.inputs((*args, *kwargs.values()))
        if name in ("replace", "join", "string"):
            budget.inputs(x for x in (value,) if not isinstance(x, int))
        if name == "replace":
            old_new = (*args, kwargs.get("old", ""), kwargs.get("new", ""))
            budget.replace(value, *old_new[:2])
        elif name == "join" and not (args[1:] or "attribute" in kwargs):
            value = budget.join(args[0] if args else kwargs.get("d", ""), value)
        elif name in ("list", "sort", "unique", "map", "select", "reject"):
            value = budget.rounds(value)
        first = {
            "context": context,
            "eval_context": context.eval_ctx,
            "environment": context.environment,
        }
        front = (first[passes],) if passes else ()
        return budget.admit(function(*front, value, *args, **kwargs))

    return metered


def _metered_test(function: Callable[..., Any]) -> Callable[..., Any]:
    passes = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @jinja2.pass_context
    def metered(context: Context, *args: Any, **kwargs: Any) -> Any:
        _budget(context).step()
        front = (context.environment,) if passes else ()
        return function(*front, *args, **kwargs)

    return metered


class _Generation(Extension):
    """{% generation %} marks the assistant's text for others; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _Namespace(Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace's attribute must not begin with _ but is {name}")
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    result = _Namespace()
    for name, value in dict(*args, **kwargs).items():
        result[name] = value
    return result


def _range(*args: int) -> range:
    result = range(*args)
    if len(result) > MAX_RANGE:
        raise BudgetError(f"it makes a range of more than {MAX_RANGE} numbers")
    return result


@jinja2.pass_context
def _dict(context: Context, *args: Any, **kwargs: Any) -> dict[Any, Any]:
    result: dict[Any, Any] = _budget(context).admit(dict(*args, **kwargs))
    return result


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message)[:1000])


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 100:
        raise BudgetError("it formats the date with a pattern of more than 100 characters")
    return datetime.now().strftime(pattern)


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
    budget = _budget(context)
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


_GLOBALS: dict[str, Callable[..., Any]] = {
    "range": _range,
    "dict": _dict,
    "namespace": _namespace,
    "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
}


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    known = environment.filters
    environment.filters = {name: _metered_filter(name, known[name]) for name in _FILTERS.split()}
    environment.filters |= {
        "tojson": _tojson,
        "@emit": _emit,
        "@admit": _admit,
        "@rounds": _rounds,
        "@concat": _concat,
    }
    tests: Mapping[str, Any] = environment.tests
    environment.tests = {name: _metered_test(test) for name, test in tests.items()}
    environment.globals = dict(_GLOBALS)
    return environment
