"""Kernels as Python functions: one op a file, differentiable, with the same name on every layer down to the kernel."""

from pyengine.ops.linear_logprob import linear_logprob
from pyengine.ops.philox_uniform import philox_uniform
from pyengine.ops.rms_norm import rms_norm

__all__ = ["linear_logprob", "philox_uniform", "rms_norm"]
