"""YAML as recipes hold it, within limits: a small text must not become a huge value, or take minutes to read."""

import re
from typing import Any

import yaml

MAX_TEXT = 2 * 2**20
"""Bytes of a recipe."""

MAX_DEPTH = 50
"""Levels of nesting."""

_MAX_VALUES = 200_000  # once every alias is replaced by what it stands for
_MAX_NUMBER = 100  # characters; numbers in base 60 take quadratic time

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MERGE = "tag:yaml.org,2002:merge"


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: if it is not YAML, gives a key twice, or exceeds a limit.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - derived from the safe loader
    except ValueError as error:  # such as a date in month 13
        raise yaml.YAMLError(str(error)) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise yaml.YAMLError(f"a value does not fit its tag ({error})") from error  # such as `!!int ""`


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, and refuses a key that is given twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}  # of all finished nodes; an alias is the node that it stands for

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refused(f"more than {MAX_DEPTH} levels of nesting", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and node not in self._sizes:
            raise _refused("an alias to what it is part of", mark)
        if node is not None and not is_alias:
            self._sizes[node] = 1 + sum(self._sizes[part] for part in _parts(node))
            if max(self._sizes[node], len(self._sizes)) > _MAX_VALUES:
                raise _refused(f"more than {_MAX_VALUES:,} values, those that aliases stand for included", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if key.tag != _MERGE and isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _refused(f'the key "{key.value}" is given twice', node.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 requires a dot in a number with an exponent.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), [*"-+0123456789"]
)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if node.tag in _NUMBERS and len(node.value) > _MAX_NUMBER:
        raise _refused(f"a number of more than {_MAX_NUMBER} characters", node.start_mark)
    return []


def _refused(problem: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
