"""What runs the kernels: the compiled extension, its instruction set, and the threads.

torch is imported first: our extension then finds torch's OpenMP runtime already mapped under the
same soname and shares its threads, instead of starting a second pool that would fight for the
cores.
"""

from __future__ import annotations

import os

import torch

from pyengine import _C
from pyengine.errors import ConfigError

_C.register_torch(torch.Tensor, torch.nn.Parameter)
_C.set_num_threads(torch.get_num_threads())
_forked = False


def _after_fork() -> None:
    """A fork has none of its parent's threads, and OpenMP would wait for them for ever."""
    global _forked
    _forked = True
    torch.set_num_threads(1)
    _C.set_num_threads(1)


os.register_at_fork(after_in_child=_after_fork)


def set_num_threads(n: int) -> None:
    """Sets the threads that torch and our kernels use; never changes a bit of a kernel's result.

    Raises ConfigError unless n >= 1, and in a forked process, which has one thread, unless n is 1.
    """
    if n < 1:
        raise ConfigError(f"[set_num_threads] n must be >= 1 but is {n}")
    if _forked and n > 1:
        raise ConfigError(
            f"[set_num_threads] n must be 1 in a forked process, which has none of its parent's "
            f"threads, but is {n}: start it by 'spawn'"
        )
    torch.set_num_threads(n)
    _C.set_num_threads(n)


def get_num_threads() -> int:
    """Threads that torch and our kernels use."""
    return _C.num_threads()


def isa() -> str:
    """The instruction set in use: the best this CPU has, or what PYENGINE_ISA forced."""
    return _C.isa()


def check_tensors(op: str, **arguments: object) -> None:
    """TypeError naming the first argument that is not a tensor: before its shape is asked for."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            kind = type(value)
            module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
            raise TypeError(
                f"[{op}] {name} must be a torch.Tensor but is {module}{kind.__qualname__}"
            )


def stream_handle(tensor: torch.Tensor) -> int:
    """The current CUDA stream of the tensor's device as an integer; 0 on CPU."""
    if not tensor.is_cuda:
        return 0
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)
