"""Updates of a policy: the gradient of an objective over a batch, and the step that follows."""

from __future__ import annotations

import torch

from pyengine.engine.batch.loss_batch import LossBatch
from pyengine.engine.footprint import Footprint
from pyengine.engine.learn.learning import Learner
from pyengine.engine.learn.sharded_training import sharded_forward_backward
from pyengine.engine.learn.trained_network import TrainedNetwork, drops_gradients
from pyengine.engine.learn.training import checked_batch, checked_scale, forward_backward, measure
from pyengine.engine.named.engine_reference import EngineReference
from pyengine.engine.optim.sharded_optimizer import ShardedOptimizer
from pyengine.objectives.core.objective import Objective, SideOutput
from pyengine.preferences.groups import Preferences


class Updates:
    """What an engine does with batches.

    footprint  says how many tokens a micro-batch has, and whether an update has room
    """

    def __init__(
        self,
        network: TrainedNetwork,
        learner: Learner,
        reference: EngineReference,
        footprint: Footprint,
        device: torch.device,
    ) -> None:
        self._network, self._learner = network, learner
        self._reference = reference
        self._footprint = footprint
        self._device = device
        self._has_room: set[tuple[SideOutput, ...]] = set()  # updates that memory was found for

    @drops_gradients
    def update(self, batch: Preferences, objective: Objective) -> dict[str, float]:
        """One optimizer step on the batch's mean loss: `forward_backward`, then `step`.

        Returns the metrics of both.
        """
        return self.forward_backward(batch, objective) | self.step()

    @drops_gradients
    def forward_backward(
        self, batch: Preferences, objective: Objective, scale: float = 1.0
    ) -> dict[str, float]:
        """Adds the gradient of scale times the batch's loss, in micro-batches.

        Losses of several batches and objectives make one step so (C3PO, PPO-ptx). Returns "loss"
        and the objective's metrics, averaged by weight over its comparisons, responses or groups
        (`Objective.unit`), and "tokens" computed. When it raises or is interrupted, all gathered
        gradients are dropped. Raises RequestError before any work.
        """
        self._network.check_masters("update")
        scale = checked_scale(scale)
        examples = self._checked(batch, objective)
        self._check_room(objective)
        tokens = self._footprint.sizes.micro_batch_tokens
        optimizer, learner = self._network.optimizer, self._learner
        try:
            if isinstance(optimizer, ShardedOptimizer):
                return sharded_forward_backward(
                    learner, optimizer, examples, objective, tokens, self._device, scale
                )
            return forward_backward(learner, examples, objective, tokens, self._device, scale)
        except BaseException:  # a RequestError too, now that there has been work
            self._network.drop_gradients()
            raise

    def measure(self, batch: Preferences, objective: Objective) -> dict[str, float]:
        """The loss and metrics of a batch as `forward_backward` returns them; no gradient.

        Raises RequestError before any work.
        """
        examples = self._checked(batch, objective)
        tokens = self._footprint.sizes.micro_batch_tokens
        return measure(self._learner, examples, objective, tokens, self._device)

    @drops_gradients
    def step(self) -> dict[str, float]:
        """Applies the gathered gradients and clears them; all of it, or nothing when interrupted.

        Returns "lr", "grad_norm" before clipping, "step" (made so far) and "skipped". Gradients
        that are not finite change nothing: the step is skipped, and after MAX_SKIPPED_STEPS in a
        row it raises NonFiniteError. Raises RequestError when there are no gradients.
        """
        return self._network.step()

    def _checked(self, batch: Preferences, objective: Objective) -> LossBatch:
        spec = self._network.decoder.spec
        return checked_batch(
            batch,
            objective,
            self._learner,
            self._reference.exists,
            spec.vocab_size,
            spec.max_positions,
        )

    def _check_room(self, objective: Objective) -> None:
        """Once for each kind of update: from then on its memory is the engine's."""
        if objective.side_outputs not in self._has_room:
            self._footprint.plan(objective.side_outputs).check_update()
            self._has_room.add(objective.side_outputs)
