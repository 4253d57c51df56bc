"""Loops: the order in which sampling, judging, pairing and updating happen. No loss maths."""

from __future__ import annotations

from pyengine.loops.evaluate import Evaluation, evaluate
from pyengine.loops.head_to_head import HeadToHead, head_to_head
from pyengine.loops.loop import Loop
from pyengine.loops.offline import Offline
from pyengine.loops.online import Online
from pyengine.loops.steps import JudgePolicy
from pyengine.loops.walk import PromptWalk

__all__ = [
    "Evaluation",
    "HeadToHead",
    "JudgePolicy",
    "Loop",
    "Offline",
    "Online",
    "PromptWalk",
    "evaluate",
    "head_to_head",
]
