"""Components by name: built-in ones, registered ones, entry points, or code in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from tap_hf.errors import UserCodeError, did_you_mean
from tap_hf.user_code import calling, load_code, names_code

Part = TypeVar("Part")


@dataclass(frozen=True)
class Registry(Generic[Part]):
    """The components of one kind, imported when they are used.

    Attributes:
        kind: for messages, such as "method".
        group: the entry points of installed packages.
        builtin: the package's own components, or their `package.module:name`.
        attributes: those that a component must have.
    """

    kind: str
    group: str
    builtin: "Mapping[str, str | Part]"
    attributes: tuple[str, ...] = ("__call__",)
    _registered: dict[str, Part] = field(default_factory=dict, init=False)

    @property
    def names(self) -> tuple[str, ...]:
        """All known names."""
        return tuple(dict.fromkeys((*self.builtin, *self._registered, *self._entry_points())))

    def register(self, name: str, part: Part) -> None:
        """Register a component in this process; a later registration of a name replaces it.

        Raises:
            UserCodeError: if the name is built in, or if the component lacks an attribute.
        """
        if name in self.builtin or names_code(name):
            raise UserCodeError(f'"{name}" cannot be the name of another {self.kind}; choose a name of your own.')
        self._checked(name, part)
        self._registered[name] = part

    def problem(self, name: str) -> str | None:
        """Return the problem with a name, without running code."""
        if names_code(name) or name in self.names:
            return None
        return f'unknown {self.kind} "{name}"{did_you_mean(name, self.names)} (your own: file.py:name)'

    def find(self, name: str) -> Part:
        """Return the component of a name, imported if necessary.

        Raises:
            UserCodeError: if the name is unknown, or if its code raises.
        """
        if (problem := self.problem(name)) is not None:
            raise UserCodeError(problem)
        if name in self.builtin:
            own = self.builtin[name]
            found: Part = load_code(own) if isinstance(own, str) else own
            return found
        if name in self._registered:
            return self._registered[name]
        if (entry := self._entry_points().get(name)) is not None:
            with calling(f"entry point {self.group}:{name} ({entry.value})"):
                return self._checked(name, entry.load())
        return self._checked(name, load_code(name))

    def _checked(self, name: str, part: Part) -> Part:
        if absent := [attribute for attribute in self.attributes if not hasattr(part, attribute)]:
            raise UserCodeError(f"{name} is not a {self.kind}: it has no {', '.join(absent)}")
        return part

    def _entry_points(self) -> dict[str, EntryPoint]:
        return _installed(self.group)


@cache
def _installed(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group; a search of all installed packages takes longer than to validate a recipe."""
    return {entry.name: entry for entry in entry_points(group=group)}
