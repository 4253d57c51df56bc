"""Parts by name: one list for everything that a recipe can name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from pyengine.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Name -> class, for the parts of one kind.

    A part is a dataclass with a `name`; its fields are what a recipe may say of it, and they check
    themselves when it is made (pyengine.rules).

    kind     in the plural, as messages and `pyengine parts` name it: "objectives", "pairings", ...
    classes  one line each
    """

    def __init__(self, kind: str, *classes: type[T]) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}
        for cls in classes:
            self.add(cls)

    def add(self, cls: type[T]) -> type[T]:
        """Puts a class in under its name; usable as a decorator.

        Raises ConfigError where the name is another class's.
        """
        name: str = cls.name  # type: ignore[attr-defined]
        if self._classes.setdefault(name, cls) is not cls:
            raise ConfigError(
                f"[{self.kind}] a name must be one class's but {name!r} is that of "
                f"{self._classes[name].__name__} and {cls.__name__}"
            )
        return cls

    def __iter__(self) -> Iterator[type[T]]:
        """Classes in the order of their names."""
        return iter(self._classes[name] for name in self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def names(self) -> list[str]:
        """What `make` takes, in order."""
        return sorted(self._classes)

    def class_of(self, name: str) -> type[T]:
        """Raises ConfigError for an unknown name."""
        if name not in self._classes:
            near = difflib.get_close_matches(str(name), self._classes, n=1, cutoff=0.6)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(
                f"[{self.kind}] name must be one of {', '.join(self.names())} but is {name!r}{hint}"
            )
        return self._classes[name]

    def fields(self, name: str) -> Mapping[str, dataclasses.Field[Any]]:
        """The fields of a part. Raises ConfigError for an unknown name."""
        found = dataclasses.fields(self.class_of(name))  # type: ignore[arg-type]
        return {field.name: field for field in found if field.init}

    def make(self, name: str, **options: Any) -> T:
        """The part called `name`, e.g. make("dpo", beta=0.1).

        Raises ConfigError for an unknown name or option, one that is missing, and a value that
        breaks its rule.
        """
        cls, known = self.class_of(name), self.fields(name)
        for option in options:
            if option not in known:
                raise ConfigError(
                    f"[{self.kind}] {name} has no option {option!r}; it has "
                    f"{', '.join(sorted(known)) or 'none'}"
                )
        missing = [
            field.name
            for field in known.values()
            if field.name not in options
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"[{self.kind}] {name} needs {', '.join(missing)}")
        return cls(**options)
