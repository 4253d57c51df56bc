"""Objectives of sampled responses and their advantages, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyengine.errors import ConfigError, RequestError
from pyengine.objectives.core.arguments import first_tensor, like
from pyengine.objectives.core.kl_estimates import kl_shaped_rewards, over_tokens, token_mask
from pyengine.objectives.core.objective import (
    ENTROPY,
    LossInputs,
    LossOutput,
    Objective,
    SideOutput,
    Unit,
    differentiate,
)
from pyengine.objectives.lists.listwise import equal_groups
from pyengine.objectives.tokens.advantage_estimators import advantages, discounted_returns
from pyengine.objectives.tokens.surrogate import TokenBatch, evaluate_fused, evaluate_tokens
from pyengine.ops.token_loss import TokenSurrogate, token_loss
from pyengine.rules import ABOVE_ONE, COUNT, POSITIVE, one_of, or_none

WHO = "token_loss"
ESTIMATOR = one_of("rewards", "grpo", "dr_grpo", "rloo", "remax", "reinforce_pp")
REDUCTION = one_of("sequence", "token", "constant", "sum")
OF_TOKENS = ("rewards", "reinforce_pp")  # estimators that take rewards of tokens


OPTIONAL_CLIP = or_none(POSITIVE)
OPTIONAL_DUAL_CLIP = or_none(ABOVE_ONE)
OPTIONAL_COUNT = or_none(COUNT)


class Credit(NamedTuple):
    """What every response, or every token of one, was better by than expected.

    values     (S,) of responses, or (N,) of tokens, float64
    per_token  which of the two
    metrics    (S,) each: what to tell of them
    """

    values: Tensor
    per_token: bool
    metrics: dict[str, Tensor]


class TokenObjective(Objective):
    """A mean over responses or tokens of losses that are weighted by advantages.

    In the engine advantages are those of every token, Feedback.token_columns["advantages"] (such as
    `gae` makes them), or else come from the column "rewards" within each group, by the method that
    `advantage_estimator` names; a penalty kl_coef * (log-ratio of sampler and reference, summed)
    is then taken off the rewards first. With kl_level "token", or Feedback.token_columns
    ["token_rewards"] in the place of the column, each token's penalty is taken off its own reward,
    and its advantage is what its response has still to come ("rewards"), normalised over all tokens
    of the batch ("reinforce_pp"). All that is the caller's in `token_loss`, which takes
    advantages. A bonus entropy_coef * entropy of every token is reduced as the losses are.

    reduction    "sequence": mean of each response's tokens, then of responses; "token": mean of the
                 batch's tokens; "constant": sums over max_length, then the mean of responses;
                 "sum": sums, then the mean of responses
    engine_only  hyperparameters of the engine alone: where its advantages come from, the bonus
    per_token    whether advantages may differ between a response's tokens; else there is one loss a
                 response, and no reduction

    To add one, write `surrogate`, or `losses` where the formula is not of that form.
    """

    unit: ClassVar[Unit] = "response"
    engine_only: ClassVar[tuple[str, ...]] = (
        "advantage_estimator",
        "kl_coef",
        "kl_level",
        "entropy_coef",
    )
    per_token: ClassVar[bool] = True
    reduction: str = "sequence"
    max_length: int | None = None
    advantage_estimator: str = "rewards"
    kl_coef: float = 0.0
    kl_level: str = "response"
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction == "constant" and self.max_length is None:
            raise ConfigError(f"[{self.name}] max_length must be given with reduction 'constant'")
        if self.reduction != "constant" and self.max_length is not None:
            raise ConfigError(
                f"[{self.name}] max_length must be None unless reduction is 'constant' but is "
                f"{self.max_length} with reduction {self.reduction!r}"
            )
        if self.kl_level == "token" and self.advantage_estimator not in OF_TOKENS:
            raise ConfigError(
                f"[{self.name}] advantage_estimator must be one of {', '.join(OF_TOKENS)} with "
                f"kl_level 'token' but is {self.advantage_estimator!r}"
            )

    @property
    def uses_reference(self) -> bool:
        """Whether the loss itself takes reference log-probs."""
        return False

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        """Whether the loss or the rewards take the divergence from the reference."""
        return self.uses_reference or self.kl_coef != 0

    @property
    def batch_global(self) -> bool:  # type: ignore[override]
        """Whether advantages depend on the whole batch's rewards."""
        return self.advantage_estimator == "reinforce_pp"

    @property
    def side_outputs(self) -> tuple[SideOutput, ...]:  # type: ignore[override]
        """The entropy, where there is a bonus."""
        return (ENTROPY,) if self.entropy_coef != 0 else ()

    def surrogate(self) -> TokenSurrogate | None:
        """The loss of a token as the fused kernel's parameters; None where it is none."""
        return None

    def losses(self, x: TokenBatch) -> Tensor:
        """(B, T) losses of tokens, or (B,) of responses, differentiable in `x.policy`."""
        surrogate = self.surrogate()
        assert surrogate is not None, f"{type(self).__name__} has neither surrogate nor losses"
        losses = evaluate_tokens(surrogate, x)
        return losses if self.per_token or losses.dim() == 1 else over_tokens(losses)

    def _kernel_surrogate(self) -> TokenSurrogate | None:
        """What the kernel computes; None where a subclass has formulas of its own."""
        own = (getattr(type(self), name) for name in ("losses", "reduce", "metrics"))
        base = (TokenObjective.losses, TokenObjective.reduce, TokenObjective.metrics)
        return self.surrogate() if all(a is b for a, b in zip(own, base, strict=True)) else None

    def factors(
        self, weight: Tensor, lengths: Tensor, total_weight: float, total_tokens: float
    ) -> Tensor:
        """(B,) float64: what `reduce` multiplies the sum of a response's losses by."""
        weight = weight.double()
        if self.per_token and self.reduction == "token":
            return weight / max(total_tokens, 1)
        if self.per_token and self.reduction == "sequence":
            weight = weight / lengths.clamp(min=1)
        elif self.per_token and self.reduction == "constant":
            assert self.max_length is not None
            weight = weight / self.max_length
        return weight / total_weight

    def reduce(self, losses: Tensor, x: TokenBatch) -> Tensor:
        """The loss: of responses, their weighted mean; of tokens, by `reduction`."""
        if losses.dim() == 1:
            return (x.weight * losses).sum() / x.total_weight
        sums = over_tokens(losses.masked_fill(~x.mask, 0))
        if self.reduction == "token":
            return (x.weight * sums).sum() / max(x.total_tokens, 1)
        if self.reduction == "sequence":
            sums = sums / x.counts
        elif self.reduction == "constant":
            assert self.max_length is not None
            sums = sums / self.max_length
        return (x.weight * sums).sum() / x.total_weight

    def batch_advantages(self, rewards: Tensor, inputs: LossInputs) -> Tensor:
        """(S,) advantages of the rewards (S,), each within its group."""
        name = self.advantage_estimator
        if name == "rewards":
            return rewards
        if name == "reinforce_pp":
            lengths = inputs.lengths.unsqueeze(0)
            return advantages(name, rewards.unsqueeze(0), lengths=lengths).squeeze(0)
        if inputs.group is None:
            raise RequestError(f"[{self.name}] needs the group of every response")
        found = torch.zeros_like(rewards)
        for _, places in equal_groups(inputs.group):
            options = {}
            if name == "remax":
                options["greedy_rewards"] = self.column("greedy_rewards", inputs)[places[:, 0]]
            found[places] = advantages(name, rewards[places], **options)
        return found

    def __call__(self, inputs: LossInputs) -> LossOutput:
        self.require(inputs)
        if self.needs_sampler and inputs.sampler_token_logps is None:
            raise RequestError(f"[{self.name}] needs log-probs under the model that sampled")
        credit = self._credit(inputs)
        total = inputs.total_tokens
        factor = self.factors(
            inputs.weight,
            inputs.lengths,
            inputs.total_weight,
            float(len(inputs.policy_token_logps) if total is None else total),
        )
        if inputs.on_kernels and (surrogate := self._kernel_surrogate()) is not None:
            output = self._fused(surrogate, credit, factor, inputs)
        else:
            output = self._in_torch(credit, inputs)
        output.metrics.update(credit.metrics)
        return output if self.entropy_coef == 0 else self._with_entropy(output, factor, inputs)

    def _credit(self, inputs: LossInputs) -> Credit:
        """From given advantages, or from the rewards of tokens or of responses."""
        given = inputs.token_columns.get("advantages")
        if given is not None:
            if not self.per_token or self.kl_coef != 0:
                why = "kl_coef is not 0" if self.per_token else "it takes one a response"
                raise RequestError(
                    f"[{self.name}] does not take Feedback.token_columns['advantages']: {why}"
                )
            return self._of_tokens(self.finite("advantages", given, of="token").double(), inputs)
        rewards = self.column("rewards", inputs)
        token_rewards = inputs.token_columns.get("token_rewards")
        if token_rewards is not None or self.kl_level == "token":
            return self._of_tokens(self._returns(rewards, token_rewards, inputs), inputs)
        if self.kl_coef != 0:
            assert inputs.reference_token_logps is not None
            penalty = inputs.sequence_logps(self._sampled(inputs))
            penalty = penalty - inputs.sequence_logps(inputs.reference_token_logps)
            rewards = rewards - self.kl_coef * penalty
        found = self.batch_advantages(rewards, inputs).detach()
        return Credit(found, False, {"rewards": rewards.detach(), "advantages": found})

    def _of_tokens(self, found: Tensor, inputs: LossInputs) -> Credit:
        """Advantages (N,), of which a response's mean is told."""
        sums = inputs.sequence_logps(found.to(inputs.policy_token_logps.dtype))
        return Credit(found, True, {"advantages": sums / inputs.lengths.clamp(min=1)})

    def _returns(self, rewards: Tensor, token_rewards: Tensor | None, inputs: LossInputs) -> Tensor:
        """(N,) float64 advantages: what is still to come, normalised where the estimator does.

        token_rewards  (N,); None: the response's reward (S,) at its last token
        """
        if not self.per_token or self.advantage_estimator not in OF_TOKENS:
            why = f"advantage_estimator is {self.advantage_estimator!r}"
            raise RequestError(
                f"[{self.name}] does not take Feedback.token_columns['token_rewards']: "
                f"{why if self.per_token else 'it takes one a response'}"
            )
        mask = padding(inputs.lengths)
        log_ratio = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
        if self.kl_coef != 0:
            assert inputs.reference_token_logps is not None
            reference = rows(inputs.reference_token_logps, mask)
            log_ratio = rows(self._sampled(inputs), mask) - reference
        if token_rewards is None:
            shaped = kl_shaped_rewards(rewards, log_ratio, mask, self.kl_coef)
        else:
            given = rows(self.finite("token_rewards", token_rewards, of="token"), mask)
            shaped = given - self.kl_coef * log_ratio
        returns = discounted_returns(shaped, mask)[mask]
        if self.advantage_estimator == "rewards":
            return returns
        return advantages("reinforce_pp", returns.unsqueeze(0)).squeeze(0)

    def _sampled(self, inputs: LossInputs) -> Tensor:
        """(N,) log-probs under the sampler; the policy's where they are not known."""
        sampler = inputs.sampler_token_logps
        return inputs.policy_token_logps.detach() if sampler is None else sampler

    def _in_torch(self, credit: Credit, inputs: LossInputs) -> LossOutput:
        """In float64 over padded tokens."""

        def loss(policy: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            x = self._laid_out(policy, credit, inputs)
            return self.reduce(self.losses(x), x), self.metrics(x)

        total, (dlogps,), metrics = differentiate(loss, [inputs.policy_token_logps])
        return LossOutput(total, dlogps.to(inputs.policy_token_logps.dtype), metrics)

    def _fused(
        self, surrogate: TokenSurrogate, credit: Credit, factor: Tensor, inputs: LossInputs
    ) -> LossOutput:
        """Loss, gradient and metrics from the kernel."""
        policy = inputs.policy_token_logps.detach()

        def packed(logps: Tensor | None) -> Tensor | None:
            return None if logps is None else logps.detach().to(policy.dtype)

        result = token_loss(
            surrogate,
            policy,
            inputs.cu_seqlens,
            credit.values.contiguous(),
            old=packed(inputs.sampler_token_logps),
            reference=packed(inputs.reference_token_logps),
            factor=factor,
            per_token=credit.per_token,
        )
        metrics = {"logps": result.logps}
        if result.log_ratio is not None:
            metrics["policy/log_ratio"] = result.log_ratio
        if result.kl is not None:
            metrics["objective/kl"] = result.kl
        return LossOutput((factor * result.losses).sum(), result.dlogps, metrics)

    def _with_entropy(self, output: LossOutput, factor: Tensor, inputs: LossInputs) -> LossOutput:
        """The loss less entropy_coef times the entropies, reduced as the losses are."""
        entropy = inputs.sequence_logps(inputs.side["entropy"])
        slope = inputs.token_gradient(-self.entropy_coef * factor)
        metrics = output.metrics | {"policy/entropy": entropy / inputs.lengths.clamp(min=1)}
        loss = output.loss - self.entropy_coef * (factor * entropy).sum()
        return LossOutput(loss, output.dlogps, metrics, {"entropy": slope})

    def _laid_out(self, policy: Tensor, credit: Credit, inputs: LossInputs) -> TokenBatch:
        """Packed tokens as (B, T) in float64."""
        mask = padding(inputs.lengths)

        def laid(values: Tensor | None) -> Tensor | None:
            return None if values is None else rows(values, mask)

        if credit.per_token:
            spread = rows(credit.values, mask)
        else:
            spread = credit.values.unsqueeze(1).expand(mask.shape).masked_fill(~mask, 0)
        total = inputs.total_tokens
        return TokenBatch(
            policy=rows(policy, mask),
            old=laid(inputs.sampler_token_logps),
            reference=laid(inputs.reference_token_logps),
            advantages=spread,
            mask=mask,
            weight=inputs.weight.double(),
            total_weight=inputs.total_weight,
            total_tokens=float(len(policy) if total is None else total),
        )

    def metrics(self, x: TokenBatch) -> dict[str, Tensor]:
        """(S,) each: log-prob, and how far the policy is from sampler and reference."""
        values = {"logps": over_tokens(x.policy)}
        if x.old is not None:
            values["policy/log_ratio"] = over_tokens(x.log_ratio) / x.counts
        if x.reference is not None:
            values["objective/kl"] = over_tokens(x.log_ratio_to_reference)
        return values


def padding(lengths: Tensor) -> Tensor:
    """(B, T) bool: which of T places the tokens of B responses take."""
    width = int(lengths.max()) if len(lengths) else 0
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)


def rows(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T) float64: packed tokens (N,) where the mask has places, 0 elsewhere."""
    empty = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
    return empty.masked_scatter(mask, values.double())


def plain_loss(objective: TokenObjective, given: Mapping[str, Any]) -> Tensor:
    """() of the plain function's arguments, once they are checked."""
    policy = first_tensor(WHO, "token_logps", given["token_logps"], "(B, T)", 2)
    shape = tuple(policy.shape)
    mask = token_mask(WHO, given["mask"], policy)

    def optional(name: str, needed: bool) -> Tensor | None:
        if given[name] is None and not needed:
            return None
        return like(WHO, name, given[name], policy, shape).masked_fill(~mask, 0)

    of_tokens = torch.as_tensor(given["advantages"])
    if of_tokens.dim() == 1 or not objective.per_token:
        of_tokens = like(WHO, "advantages", of_tokens, policy, shape[:1])
        of_tokens = of_tokens.unsqueeze(1).expand(shape)
    x = TokenBatch(
        policy=policy.masked_fill(~mask, 0),
        old=optional("old_token_logps", objective.needs_sampler),
        reference=optional("ref_token_logps", objective.uses_reference),
        advantages=like(WHO, "advantages", of_tokens, policy, shape).masked_fill(~mask, 0),
        mask=mask,
        weight=torch.ones(shape[0], dtype=policy.dtype, device=policy.device),
        total_weight=float(max(shape[0], 1)),
        total_tokens=float(mask.sum()),
    )
    surrogate = objective._kernel_surrogate()
    if surrogate is None or policy.dtype != torch.float32 or policy.device.type != "cpu":
        return objective.reduce(objective.losses(x), x)
    factor = objective.factors(x.weight, mask.sum(1), x.total_weight, x.total_tokens)
    return evaluate_fused(surrogate, x, factor, objective.per_token)
