"""Iterates of the policy by name: kept, combined, brought back, made the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from pyengine.engine.infer.inference import Inference
from pyengine.engine.learn.learning import Learner
from pyengine.engine.learn.trained_network import TrainedNetwork
from pyengine.engine.named.combination import check_mix, mean_mix
from pyengine.engine.named.engine_reference import EngineReference
from pyengine.engine.named.named_models import NamedModels
from pyengine.engine.named.snapshots import Snapshots
from pyengine.engine.uninterrupted import uninterrupted
from pyengine.errors import RequestError

Moments = Literal["keep", "reset"]


class Iterates:
    """What an engine does with its snapshots.

    A snapshot is a file; its model is in memory while it is in use. Its name stands wherever a
    model's does: `score(model=NAME)`, `generate(models={NAME: 1.0})`, `set_reference(NAME)`.

    models              of snapshots, in memory while they are in use
    inference, learner  what a reference that is replaced has to be dropped from
    """

    def __init__(
        self,
        network: TrainedNetwork,
        snapshots: Snapshots,
        reference: EngineReference,
        models: NamedModels[Any],
        inference: Inference,
        learner: Learner,
    ) -> None:
        self._network = network
        self._snapshots, self._reference = snapshots, reference
        self._models = models
        self._inference, self._learner = inference, learner

    def snapshot(self, name: str, overwrite: bool = False) -> None:
        """Keeps the policy's weights as they are now, under a name.

        The file holds float32 masters, or with LoRA the adapters alone; what scores and samples is
        what a frozen copy of the policy would be, bit for bit.
        Raises RequestError for a name that is taken (unless `overwrite`), reserved or no name;
        CheckpointError where the disk refuses or a weight is not finite.
        """
        self._write("snapshot", name, overwrite, self._snapshots.save)

    def drop_snapshot(self, name: str) -> None:
        """Deletes one. Raises RequestError for an unknown name, or that of the reference."""
        self._snapshots.check_known("drop_snapshot", name)
        if name == self._snapshots.reference:
            raise RequestError(
                f"[drop_snapshot] snapshot {name!r} is the reference: set another one first"
            )
        self._models.forget(name)
        self._snapshots.drop(name)

    def combine(self, models: Mapping[str, float], name: str, overwrite: bool = False) -> None:
        """A new snapshot: sum of coefficient * weights of snapshots and the "policy", in float32.

        extrapolation  {"new": 1.3, "old": -0.3}: theta + a (theta_new - theta_old) from theta =
                       theta_new (arXiv:2410.06293)
        interpolation  {"a": 0.5, "b": 0.5}
        EMA            {"ema": 0.99, "policy": 0.01}, name="ema", overwrite=True
        Coefficients add up to 1: otherwise norms and embeddings would be scaled too. With LoRA it
        is the adapted matrices that are combined, not A and B each; the result is no adapter, so
        `load_snapshot` cannot take it.
        Raises RequestError for names and coefficients that are not such, CheckpointError where the
        disk refuses or a sum is not finite.
        """
        mix = check_mix(models, self._snapshots)
        self._write("combine", name, overwrite, lambda new: self._snapshots.combine(mix, new))

    def average(
        self,
        names: Sequence[str],
        name: str,
        weights: Sequence[float] | None = None,
        overwrite: bool = False,
    ) -> None:
        """`combine` with weights >= 0 that are divided by their sum; None: all alike."""
        self.combine(mean_mix(names, weights), name, overwrite)

    def load_snapshot(self, name: str, moments: Moments = "keep") -> None:
        """The policy's weights become the snapshot's; all of them, or none when interrupted.

        moments  the optimizer's: "keep" them as they are, or "reset" them to zero; the schedule of
                 the learning rate and `step_count` go on
        Raises RequestError for an unknown name, one whose weights the policy cannot hold, or
        between forward_backward and step.
        """
        self._network.check_masters("load_snapshot")
        self._snapshots.check_known("load_snapshot", name)
        if moments not in ("keep", "reset"):
            raise RequestError(
                f"[load_snapshot] moments must be 'keep' or 'reset' but is {moments!r:.80}"
            )
        self._network.check_no_gradients("load_snapshot")
        found = self._snapshots.for_policy("load_snapshot", name)
        copies = [partial(parameter.detach().copy_, value) for parameter, value in found]
        reset = self._network.optimizer.reset_calls() if moments == "reset" else []
        uninterrupted(*copies, *reset)

    def set_reference(self, name: str) -> None:
        """A snapshot is the reference from now on, of updates and of model="reference".

        The one before is let go; where it was loaded with the engine it does not come back. When
        the snapshot is overwritten, the reference is the new one.
        Raises RequestError for a name of no snapshot.
        """
        self._snapshots.check_known("set_reference", name)
        self._snapshots.reference = name
        self._inference.drop_reference()
        self._learner.drop_reference()
        self._reference.decoder = None

    def _write(self, who: str, name: str, overwrite: bool, write: Callable[[str], object]) -> None:
        self._network.check_masters(who)
        self._snapshots.check_new(who, name, overwrite)
        write(name)
        self._models.forget(name)  # what was read from the file before
