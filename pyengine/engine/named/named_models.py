"""Models of snapshots, in memory while they are in use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar
from weakref import WeakMethod

from pyengine.engine.named.snapshots import Snapshots

KEPT = 2  # snapshots in memory beside those of the call that runs and the reference

Model = TypeVar("Model")


class NamedModels(Generic[Model]):
    """Snapshots as models that sample and score: loaded when asked for, the last ones kept.

    load  a snapshot's model
    """

    def __init__(self, snapshots: Snapshots, load: Callable[[str], Model]) -> None:
        self.snapshots = snapshots
        self._release: WeakMethod[Callable[[Model], None]] | None = None
        self._load = load
        self._held: OrderedDict[str, Model] = OrderedDict()

    def tell(self, release: Callable[[Model], None]) -> None:
        """From now on `release`, a method, is called with a model that is let go. Its owner is not
        kept alive: it holds these models itself, and would only go with a garbage collection."""
        self._release = WeakMethod(release)

    @property
    def held(self) -> list[str]:
        """Names of those in memory."""
        return list(self._held)

    @property
    def others(self) -> list[str]:
        """Snapshots beside the reference."""
        return [name for name in self.snapshots.names if name != self.snapshots.reference]

    def source(self, name: str) -> str | None:
        """The snapshot that a model's name stands for; None for the engine's own models."""
        if name == "reference":
            return self.snapshots.reference
        return None if name == "policy" else name

    def take(self, names: Iterable[str]) -> dict[str, Model]:
        """The models of snapshots; what makes room for them is let go first."""
        wanted = list(dict.fromkeys(names))
        pinned = {*wanted, self.snapshots.reference}
        others = [name for name in self._held if name not in pinned]
        room = max(KEPT - len([name for name in wanted if name != self.snapshots.reference]), 0)
        for name in others[: max(len(others) - room, 0)]:
            self.forget(name)
        for name in wanted:
            if name not in self._held:
                self._held[name] = self._load(name)
            self._held.move_to_end(name)
        return {name: self._held[name] for name in wanted}

    def forget(self, name: str) -> None:
        """Lets one go, since its memory is needed or its weights have changed."""
        model = self._held.pop(name, None)
        release = None if self._release is None else self._release()
        if model is not None and release is not None:
            release(model)
