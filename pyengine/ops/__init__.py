"""Kernels as differentiable Python functions: one op a file, named alike on every layer below."""

from pyengine.ops.linear_logprob import linear_logprob
from pyengine.ops.philox_uniform import philox_uniform
from pyengine.ops.rms_norm import rms_norm
from pyengine.ops.sample import LogitAdjustments, Sampled, sample

__all__ = [
    "LogitAdjustments",
    "Sampled",
    "linear_logprob",
    "philox_uniform",
    "rms_norm",
    "sample",
]
