"""Reward and preference models: a decoder and a head on each response's last token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine import memory
from pyengine.engine.batch.packing import Tree, check_tree
from pyengine.engine.config import packed_kind
from pyengine.engine.footprint import Footprint
from pyengine.engine.guard import Guard, guarded, refuse_copy
from pyengine.engine.learn.backbone import Backbone
from pyengine.engine.learn.trained_network import TrainedNetwork, drops_gradients
from pyengine.engine.optim.optimizer import Optimizer
from pyengine.engine.optim.optimizer_config import OptimizerConfig
from pyengine.engine.persist import checkpoint as checkpoints
from pyengine.engine.reward.reward_checkpoint import RewardState, reward_checkpoint, reward_state
from pyengine.engine.reward.reward_head import RewardHead, padding_of
from pyengine.engine.reward.reward_loading import (
    check_place,
    loaded_reward,
    restored_reward,
    reward_optimizer,
)
from pyengine.engine.reward.reward_training import Targets, make_lesson
from pyengine.files import atomic_folder
from pyengine.models.classifier import SCORE, write_classifier
from pyengine.models.decoder import Decoder
from pyengine.models.lora import Lora, LoraConfig
from pyengine.models.spec import DecoderSpec
from pyengine.models.writer import check_save_folder
from pyengine.preferences.groups import Group, Preferences
from pyengine.preferences.head_reading import Reading

_CPU = torch.device("cpu")


class RewardModel:
    """A decoder that judges responses: outputs of its last hidden state.

    Make one with `from_pretrained`. Calls come one after another, as an engine's do: see guard.py.

    outputs       numbers a head gives: 1 is a reward, 2 k an embedding of `gpm`, 2 a mean and a
                  spread of `mean_variance`
    ensemble      heads, which differ in how they began
    reading       what the outputs of a head mean: "reward", "gpm" or "mean_variance", by the folder
                  or by the loss of the last update; None where neither says so
    pad_token_id  tokens of it at the end of a response are not read, as transformers does not; None
                  of a classifier whose folder has none: every token is read
    tokenizer, max_positions  as the engine's, so that `Preferences.from_rows` takes this model
    step_count    updates made
    extra         what the caller gave to `save_checkpoint`, of a model from `load_checkpoint`
    """

    def __init__(
        self,
        decoder: Decoder,
        lora: Lora | None,
        head: RewardHead,
        heads: tuple[int, int],
        model_config: dict[str, Any],
        tokenizer: Tokenizer | None,
        optimizer: OptimizerConfig,
        dtype: str,
        micro_batch_tokens: int | None = None,
        gradient_checkpointing: bool | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.outputs, self.ensemble = heads
        self.reading: Reading | None = "reward" if self.outputs == 1 else reading
        self.tokenizer = tokenizer
        self._guard = Guard()
        self.spec: DecoderSpec = decoder.spec
        self._head = head
        self._model_config = model_config
        self.pad_token_id = padding_of(model_config, tokenizer, self.spec.vocab_size)
        adapters = None if lora is None else lora.config
        use = memory.MemoryUse(self.spec, dtype, _CPU, rule=optimizer.rule, lora=adapters)
        sizes = memory.planned_sizes(
            "RewardModel", use, 0, micro_batch_tokens, gradient_checkpointing
        )
        self._backbone = Backbone(
            decoder, packed_kind(dtype), lora, sizes.recompute, sizes.micro_batch_tokens
        )
        trained = self._backbone.parameters | {SCORE: head.weight}
        self._network = TrainedNetwork(
            decoder, lora, Optimizer(trained, optimizer), self._backbone, dtype
        )
        self._footprint = Footprint(_CPU, lambda: use, sizes, [self._network])
        self.extra: dict[str, Any] = {}
        self._state = RewardState(
            heads,
            dtype,
            optimizer,
            adapters,
            micro_batch_tokens,
            gradient_checkpointing,
        )

    def __reduce__(self) -> NoReturn:
        refuse_copy("RewardModel")

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        outputs: int | None = None,
        ensemble: int | None = None,
        dtype: str = "auto",
        learning_rate: float | None = None,
        seed: int = 0,
        *,
        device: str | torch.device = "cpu",
        lora: LoraConfig | None = None,
        micro_batch_tokens: int | None = None,
        gradient_checkpointing: bool | None = None,
        **optimizer: Any,
    ) -> Self:
        """Loads a causal language model, which gets a new head, or a model with a head.

        path      as the engine's; or a folder of a `...ForSequenceClassification`, whose head is
                  kept
        outputs, ensemble  what the head is to be; None: what the folder says, else 1. One of the
                  two is 1
        seed      of a new head's values
        lora      new adapters to train instead of the decoder's weights
        optimizer what `Engine.from_pretrained` takes beside the learning rate (1e-5), or instead
        Raises ConfigError (setting, a GPU), ModelFileError (file).
        """
        name = check_place(device, dtype, lora)
        settings = reward_optimizer(learning_rate, optimizer)
        parts = loaded_reward(
            path,
            name,
            lora,
            (outputs, ensemble),
            seed,
            settings,
            micro_batch_tokens,
            gradient_checkpointing,
        )
        return cls(*parts)

    @property
    def max_positions(self) -> int:
        return self.spec.max_positions

    @property
    def step_count(self) -> int:
        return self._network.optimizer.step_count

    def memory_plan(self) -> memory.MemoryPlan:
        """What each part of this model takes when all of it is in use, and what is free."""
        return self._footprint.plan()

    # Judging

    @guarded
    def rewards(self, groups: Sequence[Group]) -> list[list[Tensor]]:
        """What the head says: rewards(groups)[g][k] of response k of group g, float32.

        A scalar (); (outputs,) where a head has several; (ensemble,) where there are several heads.
        Each group's prompt is computed once, and a response's numbers depend on nothing but its
        own tokens and its prompt's. Raises RequestError for ids and lengths the model cannot take.
        """
        rows = iter(self._head(self._states("rewards", groups)))
        shape = () if self.outputs * self.ensemble == 1 else (-1,)
        return [[next(rows).view(shape).clone() for _ in g.responses] for g in groups]

    @guarded
    def states(self, groups: Sequence[Group]) -> list[list[Tensor]]:
        """What the head reads: states(groups)[g][k] is the last hidden state (D,) of response k of
        group g, float32, after the final norm; as `rewards`."""
        rows = iter(self._states("states", groups))
        return [[next(rows).clone() for _ in g.responses] for g in groups]

    @property
    def head_weight(self) -> Tensor:
        """A copy of the head, (outputs * ensemble, D), float32."""
        return self._head.weight.detach().clone()

    def _states(self, who: str, groups: Sequence[Group]) -> Tensor:
        trees = [Tree(g.prompt_ids, [r.token_ids for r in g.responses]) for g in groups]
        return self._backbone.states(self._checked(who, trees))

    def _checked(self, who: str, trees: Sequence[Tree]) -> list[Tree]:
        """The trees that are computed, without padding at the end."""
        for i, tree in enumerate(trees):
            check_tree(who, i, tree, self.spec.vocab_size, self.max_positions)
        return [Tree(t.prompt_ids, [self._unpadded(r) for r in t.responses]) for t in trees]

    def _unpadded(self, ids: Sequence[int]) -> Sequence[int]:
        end = len(ids)
        while end and ids[end - 1] == self.pad_token_id:
            end -= 1
        return ids[:end]

    # Learning

    @guarded
    @drops_gradients
    def update(
        self,
        batch: Preferences,
        loss: str = "bradley_terry",
        *,
        targets: Targets | None = None,
        use_margins: bool = False,
        **options: Any,
    ) -> dict[str, float]:
        """One optimizer step: `forward_backward`, then `step`. Returns the metrics of both."""
        metrics = self._forward_backward(batch, loss, targets, use_margins, options)
        return metrics | self._network.step()

    @guarded
    def measure(
        self,
        batch: Preferences,
        loss: str = "bradley_terry",
        *,
        targets: Targets | None = None,
        use_margins: bool = False,
        **options: Any,
    ) -> dict[str, float]:
        """The loss and metrics that `forward_backward` would return, with no gradient of anything.

        Raises RequestError or ConfigError as that does.
        """
        lesson = make_lesson(batch, loss, self.outputs, targets, use_margins, options)
        lesson.check(self.ensemble, self.outputs)
        out = self._head(self._backbone.states(self._checked("measure", lesson.trees(batch))))
        _, metrics = lesson.slope(out.view(-1, self.ensemble, self.outputs))
        return metrics

    @guarded
    @drops_gradients
    def forward_backward(
        self,
        batch: Preferences,
        loss: str = "bradley_terry",
        *,
        targets: Targets | None = None,
        use_margins: bool = False,
        **options: Any,
    ) -> dict[str, float]:
        """Adds the gradient of the mean loss over the batch, which no cut into parts changes.

        loss         bradley_terry, soft_bt, gpm, mean_variance: of each comparison, by weight;
                     soft_bt and gpm take its probability. plackett_luce: of each group, whose
                     comparisons must give one order. regression: of each response with a target
        targets      [group][response] numbers for regression; None leaves a response out
        use_margins  bradley_terry: the comparisons' margins are taken off the difference
        options      hyperparameters of the loss, see pe.objectives.reward_loss
        With an ensemble each head learns from every example. Returns "loss", "tokens" computed, and
        "rewards/accuracies", "rewards/margins" and the like where the loss compares.
        Raises RequestError or ConfigError before any work; gradients are then as before.
        """
        return self._forward_backward(batch, loss, targets, use_margins, options)

    def _forward_backward(
        self,
        batch: Preferences,
        loss: str,
        targets: Targets | None,
        use_margins: bool,
        options: Mapping[str, Any],
    ) -> dict[str, float]:
        lesson = make_lesson(batch, loss, self.outputs, targets, use_margins, options)
        lesson.check(self.ensemble, self.outputs)
        trees = self._checked("update", lesson.trees(batch))
        if self.step_count == 0 and not self._backbone.gradients():
            self._footprint.plan().check_update()
        metrics: dict[str, float] = {}

        def slopes(states: Tensor) -> Tensor:
            out = self._head(states)
            slope, found = lesson.slope(out.view(-1, self.ensemble, self.outputs))
            metrics.update(found)
            return self._head.backward(slope.reshape(out.shape), states)

        try:
            tokens = self._backbone.learn(trees, slopes)
        except BaseException:
            self._network.drop_gradients()
            raise
        self.reading = lesson.reading
        return metrics | {"tokens": float(tokens)}

    @guarded
    @drops_gradients
    def step(self) -> dict[str, float]:
        """Applies the gathered gradients and clears them, as `Engine.step`.

        Raises RequestError when there are no gradients, NonFiniteError after MAX_SKIPPED_STEPS in a
        row whose gradients were not finite.
        """
        return self._network.step()

    @guarded
    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """(name, gradient) of every weight that has one, under Hugging Face names, the head's
        "score.weight"; of adapters under the names of `peft`."""
        named = self._network.named_gradients()
        if self._head.weight.grad is not None:
            named.append((SCORE, self._head.weight.grad))
        return iter(named)

    # Saving

    @guarded
    def save_pretrained(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes a folder that transformers loads as `...ForSequenceClassification`; atomic.

        With LoRA, the sums of weights and adapters. Raises as Engine.save_pretrained.
        """
        check_save_folder(path, overwrite)
        with atomic_folder(path) as folder:
            write_classifier(
                folder,
                self._network.merged(),
                self._model_config,
                self._head.weight,
                (self.outputs, self.ensemble),
                self.pad_token_id,
                self.reading,
            )
            if self.tokenizer is not None:
                self.tokenizer.save(folder)

    @guarded
    def save_checkpoint(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Writes everything that `load_checkpoint` needs to go on bit for bit; atomic.

        Arguments and errors as those of Engine.save_checkpoint.
        """
        network = self._network
        network.check_no_gradients("save_checkpoint")
        state = replace(
            self._state,
            step_count=self.step_count,
            skipped_in_a_row=network.optimizer.skipped_in_a_row,
            reading=self.reading,
            extra=extra or {},
        )
        content = reward_checkpoint(
            network.decoder,
            network.lora,
            self._head.weight,
            network.optimizer.state_tensors(),
            state,
            self._model_config,
        )
        checkpoints.write(Path(path), content, {}, self.tokenizer)

    @classmethod
    def load_checkpoint(cls, path: str | Path) -> Self:
        """The model that `save_checkpoint` wrote, after verifying every file.

        Raises CheckpointError naming file and rule.
        """
        content = checkpoints.read(path)
        state = reward_state(content, path)
        model = cls(*restored_reward(content, state, path))
        moments = content.tensors.get("optimizer", {})
        model._network.restore(moments, state.step_count, state.skipped_in_a_row)
        model.extra = state.extra
        return model
