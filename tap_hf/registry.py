"""What a name in a recipe stands for: a part of this package, a registered one, an entry point, or code in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from tap_hf.errors import UserCodeError, did_you_mean
from tap_hf.user_code import calling, load_code, names_code

Part = TypeVar("Part")


@dataclass(frozen=True)
class Registry(Generic[Part]):
    """The parts of one kind, by name; none is imported before it is used.

    Attributes:
        kind: what messages call a part, such as "method".
        group: of the entry points by which installed packages add parts.
        builtin: this package's own parts, or where they are, as `package.module:name`.
        attributes: what a part must have.
    """

    kind: str
    group: str
    builtin: "Mapping[str, str | Part]"
    attributes: tuple[str, ...] = ("__call__",)
    _registered: dict[str, Part] = field(default_factory=dict, init=False)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that stand for a part."""
        return tuple(dict.fromkeys((*self.builtin, *self._registered, *self._entry_points())))

    def register(self, name: str, part: Part) -> None:
        """Let a name stand for a part in this process; the last registration of a name holds.

        Raises:
            UserCodeError: if the name is one of this package's own, or if the part lacks something.
        """
        if name in self.builtin or names_code(name):
            raise UserCodeError(f'"{name}" cannot be the name of another {self.kind}; choose a name of your own.')
        self._checked(name, part)
        self._registered[name] = part

    def problem(self, name: str) -> str | None:
        """Return what is wrong with a name, without running code."""
        if names_code(name) or name in self.names:
            return None
        return f'unknown {self.kind} "{name}"{did_you_mean(name, self.names)} (your own: file.py:name)'

    def find(self, name: str) -> Part:
        """Return the part that a name stands for, imported if need be.

        Raises:
            UserCodeError: if there is none, or if its code raises.
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
        return {entry.name: entry for entry in entry_points(group=self.group)}
