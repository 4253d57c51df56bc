"""JSON: the response is well formed, and follows the row's JSON Schema if there is one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.errors import MissingDependencyError
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.verifiers.answer_span import fenced
from pyengine.preferences.sources.verifiers.verifier import (
    RIGHT,
    TEXT,
    UNANSWERED,
    WRONG,
    Judged,
    Verdict,
    Verifier,
    bad_answer,
    right_if,
)
from pyengine.rules import checked, or_none

_BROKEN = Verdict(0.0, ("wrong", "not_json"))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")  # which Python's reader would take


def _loads(text: str) -> Any:
    """Raises ValueError or RecursionError for what is no JSON."""
    return json.loads(text, parse_constant=_refuse)


@dataclass(frozen=True)
class JsonSchema(Verifier):
    """Right where the response is JSON, and valid under the row's JSON Schema.

    answer  the column with the schema, an object or its JSON text; its "$schema" says the draft,
            2020-12 without. None: well-formed JSON is all that is asked for

    A fenced block counts alone, the last closed one. NaN and Infinity are no JSON. A reference
    (`$ref`) to another document is an error of the row: nothing is fetched. Schemas need the
    package `jsonschema` (pip install "pyengine[verify]").
    Source: RFC 8259; JSON Schema, draft 2020-12.
    """

    name: ClassVar[str] = "json_schema"
    answer: str | None = checked("schema", or_none(TEXT))  # type: ignore[assignment]

    @property
    def reads(self) -> tuple[str, ...]:
        """See Verifier."""
        return () if self.answer is None else (self.answer,)

    def ready(self) -> None:
        """Raises MissingDependencyError without the package, where there are schemas."""
        if self.answer is not None:
            _validator_of({})

    def check(self, groups: Sequence[Group]) -> None:
        """The column must be there; so must the package, where there is a schema."""
        if self.answer is None:
            return
        super().check(groups)
        if any(group.columns.get(self.answer) is not None for group in groups):
            _validator_of({})

    @property
    def needs_answer(self) -> bool:
        """Without a column of schemas every JSON is right."""
        return self.answer is not None

    def judge(self, responses: Sequence[Judged]) -> list[Verdict]:
        """A schema is made ready once for all responses to its row."""
        ready: dict[int, Any] = {}
        verdicts = []
        for each in responses:
            if id(each.answer) not in ready:
                ready[id(each.answer)] = self._validator(each.answer)
            validator = ready[id(each.answer)]
            verdicts.append(
                validator if isinstance(validator, Verdict) else self._valid(validator, each.text)
            )
        return verdicts

    def _validator(self, schema: Any) -> Any:
        if schema is None:
            return None
        try:
            loaded = _loads(schema) if isinstance(schema, str) else schema
        except (ValueError, RecursionError):
            return bad_answer("JSON", schema)
        if not isinstance(loaded, (Mapping, bool)):
            return bad_answer("a JSON Schema", schema)
        from jsonschema.exceptions import SchemaError

        try:
            return _validator_of(loaded)
        except (SchemaError, RecursionError):
            return bad_answer("a JSON Schema", schema)

    def _valid(self, validator: Any, text: str) -> Verdict:
        found = self._document(text)
        if isinstance(found, Verdict):
            return found
        if validator is None:
            return RIGHT
        from referencing.exceptions import Unresolvable

        try:
            return right_if(validator.is_valid(found[0]))
        except Unresolvable as error:
            return Verdict(None, ("bad_answer",), f"the schema must stand alone but: {error}")
        except RecursionError:
            return WRONG

    def _document(self, text: str) -> tuple[Any] | Verdict:
        """The document in a tuple, for a document may be anything."""
        part = fenced(text, ("", "json"))
        if part is None:
            return UNANSWERED
        try:
            return (_loads(part),)
        except (ValueError, RecursionError):
            return _BROKEN


def _validator_of(schema: Any) -> Any:
    """A validator of jsonschema's that fetches nothing. Raises its SchemaError."""
    try:
        import jsonschema
        import referencing
    except ImportError as error:
        raise MissingDependencyError(
            "[json_schema] jsonschema must be installed to check schemas but is not: "
            'pip install "pyengine[verify]"'
        ) from error
    draft = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    draft.check_schema(schema)
    return draft(schema, registry=referencing.Registry())
