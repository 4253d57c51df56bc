"""Sliding windows: which layers have one, as config.json says."""

from __future__ import annotations

from collections.abc import Sequence

from pyengine.models.config import ConfigReader, show


def layer_windows(
    reader: ConfigReader, window: int | None, by_default: Sequence[bool], max_positions: int
) -> list[int | None]:
    """The window of each layer; None where it sees everything that there can be.

    window      of the layers that slide; None: none does
    by_default  whether each layer slides where there are no layer_types

    Raises: ConfigError for layer_types that are not understood.
    """
    kinds, num_layers = reader.get("layer_types"), len(by_default)
    slides = list(by_default)
    if kinds is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
            raise reader.refuse(f"layer_types must be a list of {known} but is {show(kinds)}")
        if len(kinds) != num_layers:
            raise reader.refuse(
                f"layer_types must have num_hidden_layers = {num_layers} entries "
                f"but has {len(kinds)}"
            )
        slides = [kind == "sliding_attention" for kind in kinds]
        if any(slides) and window is None:
            raise reader.refuse(
                "layer_types must be full_attention where use_sliding_window is false "
                "but has sliding_attention"
            )
    if window is None or window >= max_positions:
        return [None] * num_layers
    return [window if each else None for each in slides]
