"""Verifiers: sources that hold a response against the answer of its row; no model, no opinion."""

from pyengine.preferences.sources.verifiers.choice_letter import ChoiceLetter
from pyengine.preferences.sources.verifiers.exact_match import ExactMatch
from pyengine.preferences.sources.verifiers.json_schema import JsonSchema
from pyengine.preferences.sources.verifiers.numeric import Numeric
from pyengine.preferences.sources.verifiers.reasoning_gym_rows import reasoning_rows
from pyengine.preferences.sources.verifiers.reasoning_gym_task import ReasoningGymTask
from pyengine.preferences.sources.verifiers.regex_match import RegexMatch
from pyengine.preferences.sources.verifiers.unit_tests import UnitTests

__all__ = [
    "ChoiceLetter",
    "ExactMatch",
    "JsonSchema",
    "Numeric",
    "ReasoningGymTask",
    "RegexMatch",
    "UnitTests",
    "reasoning_rows",
]
