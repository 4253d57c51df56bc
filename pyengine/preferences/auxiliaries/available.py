"""Auxiliaries by name."""

from __future__ import annotations

from pyengine.preferences.auxiliaries.auxiliary import Auxiliary
from pyengine.preferences.auxiliaries.chosen_again import ChosenAgain
from pyengine.preferences.auxiliaries.degrees import Degrees
from pyengine.preferences.auxiliaries.revisions import Revisions
from pyengine.preferences.auxiliaries.target import Target
from pyengine.registry import Registry

AUXILIARIES: Registry[Auxiliary] = Registry(
    "auxiliaries",
    ChosenAgain,
    Degrees,
    Revisions,
    Target,
)
