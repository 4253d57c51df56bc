"""Loops: the order in which sampling, judging, pairing and updating happen. No loss maths."""

from __future__ import annotations

from pyengine.loops.evaluate import Evaluation, evaluate
from pyengine.loops.online import Online
from pyengine.loops.walk import PromptWalk

__all__ = ["Evaluation", "Online", "PromptWalk", "evaluate"]
