"""Kernels as differentiable Python functions: one op a file, named alike on every layer below."""

from pyengine.ops.adamw import Moment8bit, adamw, adamw_grad_norm, adamw_steps
from pyengine.ops.attention import attention
from pyengine.ops.attention_backward import attention_backward
from pyengine.ops.kv_cache import kv_cache
from pyengine.ops.layer_norm import layer_norm
from pyengine.ops.linear import PackedWeight, linear, linear_pack
from pyengine.ops.linear_kl import KlForward, linear_kl, linear_kl_backward, linear_kl_forward
from pyengine.ops.linear_logprob import (
    LogprobForward,
    LogprobStats,
    linear_logprob,
    linear_logprob_backward,
    linear_logprob_forward,
    linear_logprob_stats,
    sequence_logprobs,
)
from pyengine.ops.lion import lion, lion_steps
from pyengine.ops.listwise_loss import ListSurrogate, ListwiseLoss, listwise_loss
from pyengine.ops.pairwise_loss import PairOperand, PairTerm, PairwiseLoss, pairwise_loss
from pyengine.ops.philox_uniform import philox_uniform
from pyengine.ops.rms_norm import rms_norm
from pyengine.ops.rope import rope
from pyengine.ops.sample import LogitAdjustments, Sampled, sample
from pyengine.ops.segment_sum import segment_sum, segment_sum_backward
from pyengine.ops.token_loss import TokenLoss, TokenSurrogate, token_loss

__all__ = [
    "KlForward",
    "ListSurrogate",
    "ListwiseLoss",
    "LogitAdjustments",
    "LogprobForward",
    "LogprobStats",
    "Moment8bit",
    "PackedWeight",
    "PairOperand",
    "PairTerm",
    "PairwiseLoss",
    "Sampled",
    "TokenLoss",
    "TokenSurrogate",
    "adamw",
    "adamw_grad_norm",
    "adamw_steps",
    "attention",
    "attention_backward",
    "kv_cache",
    "layer_norm",
    "linear",
    "linear_kl",
    "linear_kl_backward",
    "linear_kl_forward",
    "linear_logprob",
    "linear_logprob_backward",
    "linear_logprob_forward",
    "linear_logprob_stats",
    "linear_pack",
    "lion",
    "lion_steps",
    "listwise_loss",
    "pairwise_loss",
    "philox_uniform",
    "rms_norm",
    "rope",
    "sample",
    "segment_sum",
    "segment_sum_backward",
    "sequence_logprobs",
    "token_loss",
]
