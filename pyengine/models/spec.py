"""What a decoder is: one frozen description that drives modules, loaders and writers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pyengine.models.config import ConfigReader

RopeScaling = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding, with every default already resolved.

    theta                   base of the wavelengths
    scaling                 which of the published context extensions changes them
    factor                  linear, llama3, yarn: how many times longer the context became
    original_max_positions  llama3, yarn: context length before the extension, in tokens
    low_freq_factor, high_freq_factor       llama3: where interpolation ends and begins
    beta_fast, beta_slow, truncate          yarn: the ramp between interpolation and extrapolation
    attention_factor        yarn: multiplies cos and sin (the paper's mscale)
    """

    theta: float
    scaling: RopeScaling = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True)
class LayerSpec:
    """One layer: attention and an MLP, each normalised before and added to the residual stream.

    activation  "silu_glu": down(silu(gate(x)) * up(x)); "gelu_tanh": down(gelu(up(x)))
    qk_norm     RMS norms of every head's q and k
    rope        how q and k are rotated; None: not at all
    residual_multiplier  of what attention and MLP add to the residual stream
    window      how many tokens a token sees, itself the last; None: all before it
    """

    activation: Literal["silu_glu", "gelu_tanh"]
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: RopeSpec | None
    residual_multiplier: float = 1.0
    window: int | None = None


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer with grouped key/value heads: sizes that its layers share, and the
    layers one by one.

    max_positions      the longest sequence that the model computes exactly, in tokens
    norm               "rms" or "layer", of the layers and before the head
    learned_positions  a table of them is added to the embeddings
    tied_head          the head multiplies by the embedding table
    embedding_multiplier  of the rows of the embedding table
    attention_multiplier  of q·k before the softmax; None: head_dim ** -0.5
    logits_divisor     what logits are divided by: their hidden states, after the final norm
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    learned_positions: bool
    tied_head: bool
    layers: tuple[LayerSpec, ...]
    embedding_multiplier: float = 1.0
    attention_multiplier: float | None = None
    logits_divisor: float = 1.0

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def attention_scale(self) -> float:
        """What q·k is multiplied by before the softmax."""
        scale: float = self.head_dim**-0.5
        return scale if self.attention_multiplier is None else self.attention_multiplier

    @property
    def identity(self) -> str:
        """What digests in files are made of. Layers that are all alike and use no newer option are
        written as one, as before they had a description of their own: older files are still known.
        """
        layer = replace(self.layers[0], residual_multiplier=1.0, window=None)
        plain = replace(
            self,
            layers=(layer,) * self.num_layers,
            embedding_multiplier=1.0,
            attention_multiplier=None,
            logits_divisor=1.0,
        )
        if plain != self:
            return repr(self)
        order = (
            "family vocab_size hidden_size num_layers num_heads num_kv_heads head_dim "
            "intermediate_size max_positions norm norm_eps activation qkv_bias o_bias mlp_bias "
            "qk_norm rope tied_head"
        )
        values = vars(layer) | vars(self) | {"num_layers": self.num_layers}
        return f"DecoderSpec({', '.join(f'{name}={values[name]!r}' for name in order.split())})"


@dataclass(frozen=True)
class HfTensor:
    """One tensor of a Hugging Face file: our parameters `parts` joined along dimension 0.

    `transposed`: the file holds the matrix as (in, out) instead of (out, in).
    """

    name: str
    parts: tuple[str, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    """A model family is a way to read config.json and a table of tensor names.

    prefix   what base-model files leave away from tensor names
    ignored  ends of names of tensors that hold nothing learned (old files carry them)
    has_classifier  transformers has a ...ForSequenceClassification of it
    """

    model_type: str
    architecture: str
    prefix: str
    parse: Callable[[ConfigReader], DecoderSpec]
    tensors: Callable[[DecoderSpec], list[HfTensor]]
    ignored: tuple[str, ...] = ()
    has_classifier: bool = True
