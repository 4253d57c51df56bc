"""Several processes that do one run: every rank holds the model, what is divided is the work.

`world.py` says what ranks tell each other, `torch_world.py` does it over torch.distributed,
`signs_of_life.py` says why one does not answer, `launch.py` how a process becomes a rank,
`dividing.py` says what of a batch is whose and in which order sums are made, `pieces.py` whose
parameters are.
"""

from pyengine.ranks.world import ALONE, World, current

__all__ = ["ALONE", "World", "current"]
