"""Raw kernel calls on borrowed tensors; csrc/include/pyengine/ops holds their contracts."""

from torch import Tensor

cuda_built: bool

def register_torch(tensor_type: type, parameter_type: type) -> None: ...
def use_exchange_api(use: bool) -> bool: ...
def available_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def set_num_threads(n: int) -> None: ...
def num_threads() -> int: ...
def rms_norm_forward(
    x: Tensor, weight: Tensor, eps: float, y: Tensor, rstd: Tensor | None, stream: int = 0
) -> None: ...
def rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    dx: Tensor | None,
    dweight: Tensor | None,
    stream: int = 0,
) -> None: ...
def linear_logprob_workspace_bytes(
    T: int, D: int, V: int, backward: bool, cuda: bool = False
) -> int: ...
def linear_logprob_forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logprob: Tensor,
    lse: Tensor,
    workspace: Tensor,
    stream: int = 0,
) -> None: ...
def linear_logprob_backward(
    dlogprob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    dhidden: Tensor | None,
    dweight: Tensor | None,
    workspace: Tensor,
    stream: int = 0,
) -> None: ...
def philox_uniform(
    seed: Tensor, request: Tensor, sample: Tensor, position: Tensor, u: Tensor, stream: int = 0
) -> None: ...
def sample_workspace_bytes(V: int) -> int: ...
def sample(
    logits: list[Tensor],
    coefficients: list[float],
    rows: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    adjust_offsets: Tensor | None,
    adjust_ids: Tensor | None,
    adjust_repetition: Tensor | None,
    adjust_subtract: Tensor | None,
    adjust_bias: Tensor | None,
    token_ids: Tensor,
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    kept_mass: Tensor,
    entropy: Tensor | None,
    top_ids: Tensor | None,
    top_logprobs: Tensor | None,
    status: Tensor,
    workspace: Tensor,
) -> None: ...
