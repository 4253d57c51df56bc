"""Rankings by name."""

from __future__ import annotations

from pyengine.preferences.rankings.borda import Borda
from pyengine.preferences.rankings.bradley_terry import BradleyTerry
from pyengine.preferences.rankings.copeland import Copeland
from pyengine.preferences.rankings.curatron import Curatron
from pyengine.preferences.rankings.enhanced_borda import EnhancedBorda
from pyengine.preferences.rankings.knockout import Knockout
from pyengine.preferences.rankings.pairs_beam import PairsBeam
from pyengine.preferences.rankings.ranking import Ranking
from pyengine.preferences.rankings.sparse_windows import SparseWindows
from pyengine.preferences.rankings.swiss import Swiss
from pyengine.preferences.rankings.win_rate import WinRate
from pyengine.registry import Registry

RANKINGS: Registry[Ranking] = Registry(
    "rankings",
    Borda,
    BradleyTerry,
    Copeland,
    Curatron,
    EnhancedBorda,
    Knockout,
    PairsBeam,
    SparseWindows,
    Swiss,
    WinRate,
)
