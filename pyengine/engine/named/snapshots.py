"""Named snapshots of a policy's weights: files of float32, read when they are used.

A full policy's snapshot holds its masters: in bfloat16 too, since differences of two iterates are
often below what bfloat16 can hold. With LoRA it holds the adapters, a hundredth of the weights; a
combination of such snapshots has no adapters of that rank and holds the adapted matrices, summed.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from pyengine.engine.learn.logprob_cache import arithmetic, weights_digest
from pyengine.engine.persist.tensor_stream import OpenTensors, read_header, write_stream
from pyengine.errors import CheckpointError, ConfigError, RequestError
from pyengine.files import link_or_copy, sha256_file
from pyengine.models.adapter_format import load_tensors
from pyengine.models.decoder import Decoder, set_parameter
from pyengine.models.lora import Adapter, Lora, trained_parameters

FORMAT = "pyengine-snapshot-1"
SUFFIX = ".safetensors"
RESERVED = ("policy", "reference")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")

Kind = Literal["weights", "adapter", "merged"]


@dataclass(frozen=True)
class _Snapshot:
    """A file, and how to see that it is still the one that was written."""

    path: Path
    kind: Kind
    written: tuple[int, int]
    sha256: str


def check_name(who: str, name: Any) -> str:
    """A snapshot's name. Raises RequestError."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None or name in RESERVED:
        raise RequestError(
            f"[{who}] name must be 1 to 100 of A-Z a-z 0-9 _ . - and not 'policy' or 'reference' "
            f"but is {name!r:.200}"
        )
    return name


class Snapshots:
    """The snapshots of one engine.

    policy     whose weights are kept
    lora       its adapters, which are then kept instead
    folder     where files are; None: a temporary folder, gone with this object
    reference  the one that stands for the reference; None: the engine's own does
    Raises ConfigError for a folder that cannot be made, CheckpointError for a file in it that is
    not a snapshot of this model.
    """

    def __init__(self, policy: Decoder, lora: Lora | None, folder: str | Path | None) -> None:
        self.reference: str | None = None
        self._policy, self._lora = policy, lora
        self._known: dict[str, _Snapshot] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._base_digest: bytes | None = None
        self._folder = None if folder is None else _made(Path(folder))

    @property
    def names(self) -> list[str]:
        """In the order in which they were first taken."""
        return list(self._known)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def kind(self, name: str) -> Kind:
        """What its file holds."""
        return self._known[name].kind

    def check_known(self, who: str, name: Any) -> str:
        """Raises RequestError for a name of no snapshot."""
        if not isinstance(name, str) or name not in self._known:
            raise RequestError(
                f"[{who}] name must be a snapshot's ({', '.join(self._known) or 'there are none'}) "
                f"but is {name!r:.200}"
            )
        return name

    def check_new(self, who: str, name: Any, overwrite: bool) -> str:
        """Raises RequestError for a name that may not be given to a new snapshot."""
        if check_name(who, name) in self._known and not overwrite:
            raise RequestError(
                f"[{who}] snapshot {name!r} must be new but exists: drop it or pass overwrite=True"
            )
        return cast(str, name)

    # Out and in

    def adopt_folder(self) -> None:
        """Takes up what is in the folder already, from another run."""
        if self._folder is not None:
            for path in sorted(self._folder.glob(f"*{SUFFIX}")):
                self._adopt(path.name.removesuffix(SUFFIX), path)

    def restore(self, name: str, source: Path) -> None:
        """Takes up a file that is elsewhere, in a checkpoint."""
        self._adopt(name, link_or_copy(source, self._path(name)))

    def _adopt(self, name: str, path: Path) -> None:
        metadata, shapes = read_header(path)
        kind = metadata.get("kind")
        if _NAME.fullmatch(name) is None or name in RESERVED or metadata.get("format") != FORMAT:
            raise CheckpointError(f"[{path}] is not a snapshot")
        if (
            kind not in get_args(Kind)
            or (kind == "weights") != (self._lora is None)
            or metadata.get("model") != self._model(cast(Kind, kind))
            or shapes != self._shapes(cast(Kind, kind))
        ):
            raise CheckpointError(f"[{path}] is a snapshot of another model")
        self._known[name] = _Snapshot(path, cast(Kind, kind), _seen(path), sha256_file(path))

    def files(self) -> dict[str, tuple[Path, str]]:
        """Each snapshot's file and SHA-256."""
        return {name: (self._checked(name).path, s.sha256) for name, s in self._known.items()}

    def drop(self, name: str) -> None:
        """Deletes one."""
        self._known.pop(name).path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="pyengine-snapshots-")
            self._folder = Path(self._temporary.name)
        return self._folder / f"{name}{SUFFIX}"

    def _checked(self, name: str) -> _Snapshot:
        snapshot = self._known[name]
        if not snapshot.path.is_file() or _seen(snapshot.path) != snapshot.written:
            raise CheckpointError(
                f"[{snapshot.path}] must be the file of snapshot {name!r} but was changed or "
                "deleted by another program"
            )
        return snapshot

    # What they hold

    def _shapes(self, kind: Kind) -> dict[str, tuple[int, ...]]:
        if kind == "adapter":
            return {name: tuple(p.shape) for name, p in self._adapters().parameters.items()}
        shapes = {name: tuple(p.shape) for name, p in self._policy.named_parameters()}
        if kind == "weights":
            return shapes
        parts = [part for a in self._adapters().adapters.values() for part in a.parts]
        return {f"{part}.weight": shapes[f"{part}.weight"] for part in parts}

    def _model(self, kind: Kind) -> str:
        """What a file says of its model: a snapshot of another one is refused."""
        digest = hashlib.sha256(self._policy.spec.identity.encode())
        if kind != "weights":  # on a frozen base: its norms tell it apart, whatever the dtype
            for parameter in self._policy.parameters():
                if parameter.ndim == 1:
                    digest.update(parameter.detach().cpu().numpy().data)
            scales = [(name, a.scale) for name, a in self._adapters().adapters.items()]
            digest.update(str(scales).encode())
        return digest.hexdigest()

    def _adapters(self) -> Lora:
        assert self._lora is not None
        return self._lora

    def save(self, name: str) -> None:
        """The policy as it is now."""
        if self._lora is not None:
            self._write(name, "adapter", (p.detach() for p in self._lora.parameters.values()))
        else:
            self._write(name, "weights", (p.detach() for p in self._policy.parameters()))

    def _write(self, name: str, kind: Kind, tensors: Iterator[Tensor]) -> None:
        path = self._path(name)
        metadata = {"format": FORMAT, "kind": kind, "model": self._model(kind)}
        sha256 = write_stream(path, self._shapes(kind), tensors, metadata)
        self._known[name] = _Snapshot(path, kind, _seen(path), sha256)

    @torch.no_grad()
    def combine(self, mix: Mapping[str, float], name: str) -> None:
        """sum of coefficient * weights, tensor by tensor in float32, as a new snapshot."""
        given = {each: self._open(each) for each in mix}
        if self._lora is None:
            self._write(name, "weights", self._sums(mix, given))
        else:
            self._write(name, "merged", self._merged_sums(mix, given))

    def _open(self, name: str) -> tuple[Kind, Mapping[str, Tensor] | OpenTensors]:
        if name != "policy":
            snapshot = self._checked(name)
            return snapshot.kind, OpenTensors(snapshot.path)
        if self._lora is not None:
            return "adapter", self._lora.parameters
        return "weights", dict(self._policy.named_parameters())

    def _sums(self, mix: Mapping[str, float], given: Mapping[str, Any]) -> Iterator[Tensor]:
        for name in self._shapes("weights"):
            total: Tensor | None = None
            for each, coefficient in mix.items():
                part = given[each][1][name].detach().cpu() * coefficient
                total = part if total is None else total.add_(part)
            assert total is not None
            yield total

    def _merged_sums(self, mix: Mapping[str, float], given: Mapping[str, Any]) -> Iterator[Tensor]:
        """W + sum of coefficient * what each adds to W: the coefficients' sum is 1."""
        for module, adapter in self._adapters().adapters.items():
            weights = [self._policy.get_parameter(f"{part}.weight") for part in adapter.parts]
            base = torch.cat([w.detach().float() for w in weights])
            total = base.clone()
            for each, coefficient in mix.items():
                kind, tensors = given[each]
                if kind == "merged":
                    merged = torch.cat([tensors[f"{part}.weight"] for part in adapter.parts])
                    total += (merged - base) * coefficient
                else:
                    a, b = (tensors[f"{module}.lora_{side}.weight"].detach() for side in "AB")
                    scaled = Adapter(
                        adapter.parts, adapter.scale * coefficient, nn.Parameter(a), nn.Parameter(b)
                    )
                    scaled.add_to(total)
            yield from torch.split(total, [len(w) for w in weights])

    # Use

    def for_policy(self, who: str, name: str) -> list[tuple[nn.Parameter, Tensor]]:
        """The policy's parameters, and what a snapshot has in their place, all of it read.

        Raises RequestError for one that the policy cannot hold, CheckpointError for its file.
        """
        snapshot = self._checked(name)
        if snapshot.kind == "merged":
            raise RequestError(
                f"[{who}] snapshot {name!r} is a combination of adapters, which is no adapter of "
                "the policy's rank: it can be scored, sampled from or be the reference"
            )
        tensors = OpenTensors(snapshot.path)
        parameters = trained_parameters(self._policy, self._lora)
        found = [(parameter, tensors[each]) for each, parameter in parameters.items()]
        for parameter, value in found:
            if value.shape != parameter.shape:
                raise CheckpointError(f"[{snapshot.path}] is a snapshot of another model")
        return found

    @torch.no_grad()
    def load(self, name: str) -> Decoder | Lora:
        """A frozen decoder, as `Decoder.frozen_copy` makes them, or adapters of the policy's."""
        snapshot = self._checked(name)
        tensors = OpenTensors(snapshot.path)
        shapes = self._shapes(snapshot.kind)
        if snapshot.kind == "adapter":
            lora = Lora(self._policy, self._adapters().config)
            load_tensors(lora, {each: tensors[each] for each in shapes}, snapshot.path)
            return lora
        policy = self._policy
        with torch.device("meta"):
            decoder = Decoder(policy.spec, policy.compute_dtype)
        for each, parameter in policy.named_parameters():
            value = parameter.detach()  # shared where the snapshot says nothing of it
            if each in shapes:
                dtype = policy.compute_dtype if parameter.ndim == 2 else torch.float32
                value = tensors[each].to(parameter.device, dtype)
            set_parameter(decoder, each, nn.Parameter(value, requires_grad=False))
        return decoder.requires_grad_(False)

    def load_decoder(self, name: str) -> Decoder:
        """`load` where there are no adapters."""
        decoder = self.load(name)
        assert isinstance(decoder, Decoder)
        return decoder

    def digest(self, name: str) -> bytes:
        """Of the weights and of what they are multiplied with: equal digests, equal log-probs."""
        policy = self._policy
        text = f"{policy.spec.identity} {policy.compute_dtype} {arithmetic(policy)} "
        digest = hashlib.sha256(f"{text}{self._known[name].sha256}".encode())
        if self._lora is not None:
            if self._base_digest is None:
                self._base_digest = weights_digest(policy)  # frozen
            digest.update(self._base_digest)
        return digest.digest()


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"[Engine] snapshot_folder {folder} must be a folder that can be written to: {error}"
        ) from error
    return folder


def _seen(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
