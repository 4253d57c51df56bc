"""What the names in a recipe's parts stand for in a run: models, reward models, functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyengine.data.formats import Rows, read_rows
from pyengine.engine import Engine
from pyengine.engine.calls.asking import Asking, asking
from pyengine.engine.reward.reward_model import RewardModel
from pyengine.errors import ConfigError
from pyengine.models.source import resolve
from pyengine.preferences.binding import unbound
from pyengine.preferences.remote.endpoint import endpoints_of
from pyengine.preferences.sources.needs import make_ready
from pyengine.recipes.schema.packaged import data_path
from pyengine.recipes.schema.part_names import is_place
from pyengine.recipes.schema.rewards import load_reward


class RunBindings:
    """Names of one run. A model with a place of its own is loaded once, to score and sample only.

    engine      that learns; "policy", "reference" and its snapshots are its models
    allow_code  whether a function may be the user's own
    """

    def __init__(self, engine: Engine, allow_code: bool) -> None:
        self.engine, self.allow_code = engine, allow_code
        self._judges: dict[str, Engine] = {}
        self._reward_models: dict[str, RewardModel] = {}

    def model(self, name: str) -> Asking:
        """See Bindings. Raises ConfigError or ModelFileError for a place that holds no model."""
        if not is_place(name):
            return asking(self.engine, name)
        if name not in self._judges:
            self._judges[name] = Engine.from_pretrained(name, reference="none")
        return asking(self._judges[name])

    def reward_model(self, name: str) -> RewardModel:
        """See Bindings."""
        if name not in self._reward_models:
            self._reward_models[name] = RewardModel.from_pretrained(name)
        return self._reward_models[name]

    def function(self, name: str) -> Callable[..., Any]:
        """See Bindings."""
        return load_reward(name, allow_code=self.allow_code)

    def rows(self, name: str) -> Rows:
        """See Bindings. Raises DataError."""
        return read_rows(data_path(name))


class FunctionBindings:
    """Names of functions alone, before a run has any model: other names stay as they are."""

    def __init__(self, allow_code: bool) -> None:
        self.allow_code = allow_code

    def model(self, name: str) -> Any:
        """The name itself."""
        return name

    def reward_model(self, name: str) -> Any:
        """The name itself."""
        return name

    def function(self, name: str) -> Callable[..., Any]:
        """See Bindings."""
        return load_reward(name, allow_code=self.allow_code)

    def rows(self, name: str) -> Rows:
        """See Bindings. Raises DataError."""
        return read_rows(data_path(name))


def check_names(part: Any, allow_code: bool, has_reference: bool) -> None:
    """Raises ConfigError where a name stands for nothing, before any model is loaded, and where
    something would be sent to an endpoint without leave; and what `ready` of a part raises.

    A snapshot's name is not known before the run: it is looked up when it is asked.
    """
    for endpoint in endpoints_of(part):
        if not allow_code:
            key = "" if endpoint.api_key_env is None else f" and the key in {endpoint.api_key_env}"
            raise ConfigError(
                f"[{part.name}] prompts, responses{key} would be sent to {endpoint.base_url}, "
                "which happens only where it may: if you trust the recipe, allow it by --allow-code"
            )
    make_ready(part)
    for name, kind in unbound(part):
        if kind == "function":
            load_reward(name, allow_code=allow_code)
        elif kind == "rows":
            read_rows(data_path(name))
        elif kind == "reward_model" or is_place(name):
            resolve(name)
        elif name == "reference" and not has_reference:
            raise ConfigError(
                f"[{part.name}] model must not be 'reference' where the engine has no reference"
            )
