"""An engine's checkpoints: saved, and gone on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.config import EngineConfig
from pyengine.engine.learn.trained_network import TrainedNetwork
from pyengine.engine.named.engine_reference import EngineReference
from pyengine.engine.named.snapshots import Snapshots
from pyengine.engine.persist import checkpoint as checkpoints
from pyengine.engine.persist.engine_state import (
    EngineState,
    checkpoint_content,
    fixed_files,
    saved_state,
)
from pyengine.ranks import current
from pyengine.ranks.agreement import check_same_weights
from pyengine.ranks.world import all_well, first_of


class EngineCheckpoints:
    """The last checkpoint that an engine wrote or came from: files in it whose tensors never change
    are linked into the next one.

    model  JSON files of the model: file name -> content
    """

    def __init__(
        self,
        network: TrainedNetwork,
        snapshots: Snapshots,
        reference: EngineReference,
        config: EngineConfig,
        tokenizer: Tokenizer | None,
        model: dict[str, dict[str, Any]],
    ) -> None:
        self._network = network
        self._snapshots, self._reference = snapshots, reference
        self._config, self._tokenizer, self._model = config, tokenizer, model
        self._fixed: dict[str, tuple[Path, str]] = {}  # file name -> where it is, SHA-256

    def save_checkpoint(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Writes everything that `load_checkpoint` needs to go on bit for bit; atomic.

        extra  JSON-able data of the caller's, e.g. its data cursor
        Of several ranks all must call: rank 0 writes, and all see that it is there.
        Raises RequestError between forward_backward and step, CheckpointError where the disk
        refuses, a weight is not finite, `extra` is not JSON data or `path` holds something other
        than a checkpoint; what stood at `path` is then intact.
        """
        target, network, world = Path(path), self._network, current()
        network.check_masters("save_checkpoint")
        network.check_no_gradients("save_checkpoint")
        check_same_weights(world, network.parameters.values())
        moments = network.optimizer.state_tensors()

        def written() -> dict[str, str]:
            content = checkpoint_content(
                network.decoder,
                self._reference.decoder,
                network.lora,
                moments,
                state=saved_state(self._config, network.optimizer, self._snapshots, extra or {}),
                model=self._model,
                snapshots=self._snapshots.files(),
            )
            return checkpoints.write(target, content, self._fixed, self._tokenizer)

        digests = first_of(world, written)
        all_well(world, lambda: checkpoints.check_same(target, digests))
        self._remember(target, digests)

    def go_on_from(
        self, path: str | Path, content: checkpoints.Checkpoint, state: EngineState
    ) -> None:
        """The optimizer is that of the checkpoint, whose weights the engine has already.

        Raises CheckpointError for moments of another model.
        """
        if state.config.trains:
            moments = content.tensors.get("optimizer", {})
            reset_at = state.moments_reset_at
            self._network.restore(moments, state.step_count, state.skipped_in_a_row, reset_at)
        self._remember(Path(path), content.digests)

    def _remember(self, checkpoint: Path, digests: Mapping[str, str]) -> None:
        names = [name for name in fixed_files(self._config) if name in digests]
        self._fixed = {name: (checkpoint / name, digests[name]) for name in names}
