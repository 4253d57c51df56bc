"""Several changes that an interrupt finds all made, or none of them."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable


def uninterrupted(*calls: Callable[[], object]) -> None:
    """Makes the calls in order, and no signal handler runs between the first and the last.

    Python handles signals between the instructions of Python code, and there are none in here: the
    loop is C, and so must the calls be: functools.partial of setattr, of a tensor's method, of _C.
    One that raises ends it: those that can come first.
    """
    deque(map(operator.call, calls), maxlen=0)
