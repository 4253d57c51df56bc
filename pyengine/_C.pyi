"""Raw kernel calls on borrowed tensors; csrc/include/pyengine/ops holds their contracts."""

from collections.abc import Sequence

from torch import Tensor

cuda_built: bool

def register_torch(tensor_type: type, parameter_type: type) -> None: ...
def use_exchange_api(use: bool) -> bool: ...
def available_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def set_num_threads(n: int) -> None: ...
def num_threads() -> int: ...
def layer_norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    y: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    stream: int = 0,
) -> None: ...
def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dx: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    stream: int = 0,
) -> None: ...
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
def linear_packed_words(kind: str, N: int, K: int) -> int: ...
def linear_pack(
    weight: Tensor,
    data: Tensor,
    scale: Tensor | None,
    kind: str,
    N: int,
    K: int,
    first: int,
    gated: bool,
    stream: int = 0,
) -> None: ...
def linear_pack_file(
    file: int,
    at: int,
    pairs: bool,
    rows: int,
    data: Tensor,
    scale: Tensor | None,
    kind: str,
    N: int,
    K: int,
    first: int,
    gated: bool,
) -> int: ...
def linear_forward(
    x: Tensor,
    data: Tensor,
    scale: Tensor | None,
    kind: str,
    N: int,
    K: int,
    bias: Tensor | None,
    epilogue: str,
    y: list[Tensor],
    kept: list[Tensor],
    stream: int = 0,
) -> None: ...
def linear_pack_columns(
    weight: Tensor, data: Tensor, kind: str, N: int, K: int, first: int, stream: int = 0
) -> None: ...
def linear_transpose(
    data: Tensor, out: Tensor, kind: str, N: int, K: int, gated: bool, stream: int = 0
) -> None: ...
def linear_backward_workspace_bytes(
    rows: int, N: int, K: int, groups: int, pairs: bool, cuda: bool = False
) -> int: ...
def linear_backward(
    dy: Tensor,
    x: Tensor,
    groups: Tensor,
    dweight: Tensor | None,
    dbias: Tensor | None,
    workspace: Tensor,
    stream: int = 0,
) -> None: ...
def linear_activation_backward(
    dy: Tensor, first: Tensor, second: Tensor | None, dx: Tensor, y: Tensor | None, stream: int = 0
) -> None: ...
def linear_kl_forward(
    hidden: Tensor,
    weight: Tensor | tuple[Tensor, str, int, int],
    hidden2: Tensor,
    weight2: Tensor | tuple[Tensor, str, int, int],
    kl: Tensor,
    lse: Tensor,
    temperature: float = 1.0,
    workspace: Tensor | None = None,
    stream: int = 0,
) -> None: ...
def linear_kl_backward(
    dkl: Tensor,
    hidden: Tensor,
    weight: Tensor | tuple[Tensor, str, int, int],
    hidden2: Tensor,
    weight2: Tensor | tuple[Tensor, str, int, int],
    kl: Tensor,
    lse: Tensor,
    dhidden: Tensor | None,
    dweight: Tensor | None,
    groups: Tensor | None = None,
    temperature: float = 1.0,
    reverse: bool = False,
    workspace: Tensor | None = None,
    stream: int = 0,
) -> None: ...
def linear_kl_workspace_bytes(
    T: int, D: int, V: int, pass_: str, pairs: bool, packed: bool, groups: int = 1
) -> int: ...
def linear_logprob_workspace_bytes(
    T: int,
    D: int,
    V: int,
    pass_: str,
    pairs: bool = False,
    packed: bool = False,
    groups: int = 1,
    cuda: bool = False,
) -> int: ...
def linear_logprob_forward(
    hidden: Tensor,
    weight: Tensor | tuple[Tensor, str, int, int],
    targets: Tensor,
    logprob: Tensor,
    lse: Tensor,
    workspace: Tensor,
    stream: int = 0,
    columns: tuple[Tensor, str, int, int] | None = None,
    temperature: float = 1.0,
    direction: Tensor | None = None,
    extra: dict[str, Tensor] = ...,
) -> None: ...
def linear_logprob_backward(
    dlogprob: Tensor,
    hidden: Tensor,
    weight: Tensor | tuple[Tensor, str, int, int],
    targets: Tensor,
    lse: Tensor,
    dhidden: Tensor | None,
    dweight: Tensor | None,
    workspace: Tensor,
    stream: int = 0,
    temperature: float = 1.0,
    direction: Tensor | None = None,
    groups: Tensor | None = None,
) -> None: ...
def adamw_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: float,
    stream: int = 0,
) -> None: ...
def adamw_step_8bit(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_absmax: Tensor,
    exp_avg_sq: Tensor,
    exp_avg_sq_absmax: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: float,
    stream: int = 0,
) -> None: ...
def adamw_steps(
    entries: Sequence[tuple[Tensor, ...]],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: float,
    stream: int = 0,
) -> None: ...
def lion_step(
    entries: Sequence[tuple[Tensor, ...]],
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    grad_scale: float,
    stream: int = 0,
) -> None: ...
def adamw_sum_squares(grads: list[Tensor]) -> float: ...
def adamw_square_parts(grads: list[Tensor], parts: Tensor, stream: int = 0) -> None: ...
def segment_sum_forward(
    values: Tensor, weights: Tensor | None, cu_seqlens: Tensor, sums: Tensor, stream: int = 0
) -> None: ...
def segment_sum_backward(
    dsums: Tensor, weights: Tensor | None, cu_seqlens: Tensor, dvalues: Tensor, stream: int = 0
) -> None: ...
def pairwise_loss(
    operands: Sequence[tuple[Tensor, Tensor | None, Tensor | None]],
    terms: Sequence[tuple[str, Sequence[float | Tensor], float | Tensor, float | Tensor, float]],
    weight: Tensor | None,
    losses: Tensor,
    slopes: Tensor,
    dsums: Tensor | None,
    stream: int = 0,
) -> None: ...
def token_loss(
    policy: Tensor,
    old: Tensor | None,
    reference: Tensor | None,
    cu_seqlens: Tensor,
    advantages: Tensor,
    per_token: bool,
    factor: Tensor | None,
    family: str,
    level: str,
    low: float,
    high: float,
    dual: float | None,
    penalty: str,
    beta: float,
    losses: Tensor,
    dlogps: Tensor,
    logps: Tensor,
    log_ratio: Tensor | None,
    kl: Tensor | None,
    stream: int = 0,
) -> None: ...
def listwise_loss(
    policy: Tensor,
    reference: Tensor | None,
    values: Tensor,
    groups: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    family: str,
    beta: float,
    temperature: float,
    mean: bool,
    losses: Tensor,
    dsums: Tensor,
    ranking: Tensor | None,
    workspace: Tensor | None = None,
    stream: int = 0,
) -> None: ...
def listwise_loss_workspace_bytes(S: int) -> int: ...
def philox_uniform(
    seed: Tensor, request: Tensor, sample: Tensor, position: Tensor, u: Tensor, stream: int = 0
) -> None: ...
def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    y: Tensor,
    inverse: bool,
    stream: int = 0,
) -> None: ...
def kv_elements_per_page(num_kv_heads: int, head_dim: int, page_tokens: int) -> int: ...
def kv_cache_write(
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    page_tokens: int,
    stream: int = 0,
) -> None: ...
def attention_forward(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    first_positions: Tensor,
    block_tables: Tensor,
    num_kv_heads: int,
    page_tokens: int,
    scale: float | None,
    out: Tensor,
    lse: Tensor | None = None,
    window: int | None = None,
    stream: int = 0,
) -> None: ...
def attention_backward_workspace_bytes(
    T: int, S: int, num_heads: int, num_kv_heads: int, head_dim: int, cuda: bool = False
) -> int: ...
def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    prefix_begin: Tensor,
    prefix_rows: Tensor,
    scale: float | None,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    workspace: Tensor,
    window: int | None = None,
    stream: int = 0,
) -> None: ...
def sample_workspace_bytes(V: int, B: int = 0, N: int = 0, cuda: bool = False) -> int: ...
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
    stream: int = 0,
) -> None: ...
def kv_page_elements(layers: int, heads: int, head_dim: int, page_tokens: int) -> int: ...

class Session:
    def __init__(
        self,
        *,
        models: list[dict[str, object]],
        pools: list[Tensor],
        coefficients: list[float],
        num_pages: int,
        page_tokens: int,
        share_prefixes: bool,
        max_rows: int,
        max_sequences: int,
    ) -> None: ...
    def set_weights(self, model: int, weights: dict[str, object]) -> None: ...
    def set_version(self, version: int) -> None: ...
    def forget(self) -> None: ...
    def refusal(self, tokens: int) -> str: ...
    def submit(
        self,
        prompt: list[int],
        settings: dict[str, object],
        num_samples: int,
        given: list[list[int]],
    ) -> int: ...
    def step(self, steps: int, seconds: float) -> tuple[bool, int, int]: ...
    def take(self, request: int) -> list[tuple[object, ...]]: ...
    def take_events(self) -> list[tuple[int, int, int, int, float, str]]: ...
    def token_ids(self, request: int, sample: int) -> list[int]: ...
    def collect_events(self, collect: bool) -> None: ...
    def end_sample(self, request: int, sample: int, finish: str) -> None: ...
    def clear(self) -> None: ...
    def statistics(self) -> dict[str, int]: ...
