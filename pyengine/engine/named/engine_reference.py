"""What an engine's reference is at the moment."""

from __future__ import annotations

from pyengine.engine.named.snapshots import Snapshots
from pyengine.models.decoder import Decoder


class EngineReference:
    """A decoder that was loaded with the engine, or one of its snapshots.

    decoder  None where there is none, or where a snapshot has taken its place
    """

    def __init__(self, decoder: Decoder | None, snapshots: Snapshots) -> None:
        self.decoder = decoder
        self._snapshots = snapshots

    @property
    def exists(self) -> bool:
        """Whether there is a reference at all."""
        return self.decoder is not None or self._snapshots.reference is not None
