"""A jinja2 sandbox for untrusted chat templates: no way into Python, and a bounded cost.

jinja2's immutable sandbox closes the way to Python's internals. On top of it, only the methods
and filters that templates need exist, and the template's tree is rewritten so that each loop,
output and value made passes the `Budget` of its rendering.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from pyengine.data.budget import Budget, BudgetError
from pyengine.data.sandbox_filters import BUDGET, DATE, budget_of, metered_filters, metered_tests

MAX_TEMPLATE_CHARS = 512 * 1024
MAX_RANGE = 100_000

_STR_METHODS = """
    capitalize casefold center count encode endswith find format index isalnum isalpha isascii
    isdecimal isdigit islower isnumeric isspace istitle isupper join ljust lower lstrip partition
    removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines
    startswith strip swapcase title upper zfill
"""
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STR_METHODS.split()),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    bytes: frozenset(("decode",)),
    Cycler: frozenset(("next", "reset")),
}
# Codecs and error handlers in time and space linear in the text; others need not be (idna).
_CODEC_NAMES = """
    ascii iso-8859-1 latin-1 latin1 raw-unicode-escape unicode-escape utf-16 utf-16-be utf-16-le
    utf-32 utf-8 utf-8-sig utf8
"""
_CODECS = frozenset(_CODEC_NAMES.split())
_CODEC_ERRORS = frozenset(("strict", "ignore", "replace", "backslashreplace", "xmlcharrefreplace"))


def render(
    template: jinja2.Template, variables: Mapping[str, Any], date: datetime | None = None
) -> str:
    """Renders a template of `compile_template` within a fresh budget.

    date  what strftime_now formats; None: the present

    Raises: whatever jinja2 or an expression in the template raises; BudgetError.
    """
    return template.render({**variables, BUDGET: Budget(), DATE: date})


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


# ---------------------------------------------------------------- the rewritten tree


class _Metered(NodeTransformer):
    """Sends loops, outputs and all that makes or searches large values through the budget."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        node = self.generic_visit(node)
        match node:
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
    return budget_of(context).emit(value)


@jinja2.pass_context
def _admit(context: Context, value: Any) -> Any:
    return budget_of(context).admit(value)


@jinja2.pass_context
def _rounds(context: Context, values: Any) -> Any:
    return budget_of(context).rounds(values)


@jinja2.pass_context
def _concat(context: Context, values: list[Any]) -> Any:
    budget = budget_of(context)
    return budget.admit("".join(map(str, budget.join("", values))))


# ---------------------------------------------------------------- the environment


class _Environment(ImmutableSandboxedEnvironment):
    """Every operator that can make a large value, and every call, passes the budget."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        # jinja2 would only fail at the next step, and print such an attribute as nothing.
        raise SecurityError(f"attribute {attribute!r:.80} of a {type(obj).__name__} is unsafe")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = budget_of(context)
        budget.step()
        budget.inputs(x for x in (left, right) if not isinstance(x, int))
        if operator == "*":
            budget.multiply(left, right)
        elif operator == "**":
            budget.power(left, right)
        elif operator == "%" and isinstance(left, bytes):
            raise SecurityError("bytes cannot be a format pattern")
        elif operator == "%" and isinstance(left, str):
            budget.format(left, right if isinstance(right, tuple) else (right,))
        return budget.admit(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.step()
        if isinstance(obj, Macro) or _is_global(obj):
            return super().call(context, obj, *args, **kwargs)
        if isinstance(obj, LoopContext):  # a recursive loop's next level
            return budget.admit(super().call(context, obj, *map(budget.rounds, args), **kwargs))
        if isinstance(obj, Joiner):
            return budget.admit(super().call(context, obj, *args, **kwargs))
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
        elif name in ("encode", "decode"):
            _check_codec(*args, **kwargs)
        result = super().call(context, obj, *args, **kwargs)
        # Views have no size of their own that could be measured.
        if isinstance(owner, dict) and name != "get":
            result = list(result)
        return budget.admit(result, is_new=isinstance(owner, str))


def _check_codec(encoding: str = "utf-8", errors: str = "strict") -> None:
    codec = encoding.lower().replace("_", "-")
    for value, known in ((codec, _CODECS), (errors, _CODEC_ERRORS)):
        if value not in known:
            raise SecurityError(f"{value[:40]!r} must be one of {', '.join(sorted(known))}")


def _is_global(obj: Any) -> bool:
    return any(obj is known for known in _GLOBALS.values())


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
    result: dict[Any, Any] = budget_of(context).admit(dict(*args, **kwargs))
    return result


@jinja2.pass_context
def _joiner(context: Context, sep: str = ", ") -> Joiner:
    return Joiner(budget_of(context).admit(sep))


@jinja2.pass_context
def _cycler(context: Context, *items: Any) -> Cycler:
    return Cycler(*budget_of(context).admit(items))


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message)[:1000])


@jinja2.pass_context
def _strftime_now(context: Context, pattern: str) -> str:
    if len(pattern) > 100:
        raise BudgetError("it formats the date with a pattern of more than 100 characters")
    date: datetime = context.parent[DATE] or datetime.now()
    return date.strftime(pattern)


_GLOBALS: dict[str, Callable[..., Any]] = {
    "range": _range,
    "joiner": _joiner,
    "cycler": _cycler,
    "dict": _dict,
    "namespace": _namespace,
    "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
}


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters = metered_filters() | {
        "@emit": _emit,
        "@admit": _admit,
        "@rounds": _rounds,
        "@concat": _concat,
    }
    environment.tests = metered_tests(environment.tests)
    environment.globals = dict(_GLOBALS)
    return environment
