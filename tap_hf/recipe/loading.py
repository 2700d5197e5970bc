"""Load a recipe from YAML, apply overrides, and report all problems at once."""

import copy
import dataclasses
import logging
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tap_hf.errors import RecipeError, did_you_mean
from tap_hf.recipe.algorithm_section import METHODS, OtherAlgorithmSection, section_class
from tap_hf.recipe.code_paths import beside
from tap_hf.recipe.federation_section import FederationSection
from tap_hf.recipe.options import options_class_of
from tap_hf.recipe.relations import TaskHolder, federation_problems
from tap_hf.recipe.section import lenient
from tap_hf.recipe.sections import Recipe, RunOptions
from tap_hf.recipe.yaml_text import MAX_DEPTH, MAX_TEXT, read_yaml

logger = logging.getLogger(__name__)


def load_recipe(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe.

    Args:
        recipe: a YAML file, or the mapping that one holds.
        overrides: `key.sub=value` strings; values are YAML. If `algorithm.name` changes the method, options that the
            new method does not have are dropped, with a warning.

    Raises:
        RecipeError: with every problem of the recipe at once, each with its path.

    Examples:
        >>> load_recipe("recipes/quickstart.yaml", ["federation.rounds=2"]).federation.rounds
        2
    """
    if isinstance(recipe, Mapping):
        return parse_recipe(_overridden(copy.deepcopy(dict(recipe)), overrides, "command line"))
    if not isinstance(recipe, str | Path):
        raise RecipeError("load_recipe", [f"expected a YAML file or a mapping, got {_shown(recipe)}"])
    try:
        raw = read_yaml(recipe_text(Path(recipe)))
    except yaml.YAMLError as error:
        raise RecipeError(str(recipe), [f"is not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(raw, dict):
        raise RecipeError(str(recipe), [f"expected keys and values, got {_shown(raw)}"])
    raw = _overridden(raw, overrides, "command line")
    return parse_recipe(beside(raw, Path(recipe).parent), str(recipe))


def recipe_text(path: Path) -> str:
    """Return the text of a recipe's file.

    Raises:
        RecipeError: if it cannot be read, or is not a text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT + 1)  # of a pipe or a device there may be no end
    except OSError as error:
        raise RecipeError(
            str(path), [f"cannot be read ({error.strerror}). `tap-hf recipes` lists the shipped recipes."]
        ) from error
    if len(content) > MAX_TEXT:
        raise RecipeError(str(path), [f"has more than {MAX_TEXT:,} bytes, the most that a recipe may have"])
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), [f"is not YAML in UTF-8: {error}"]) from error


def parse_recipe(raw: Mapping[str, Any], source: str = "recipe", *, run_code: bool = True) -> Recipe:
    """Validate plain values into a recipe.

    Args:
        raw: the recipe as YAML holds it.
        source: starts each line of the error.
        run_code: whether to import code that the recipe names, to check its options. Set it to `False` for the recipe
            of a record, a card or a repository: its code may be untrusted.

    Raises:
        RecipeError: with every problem of the recipe at once, each with its path.
    """
    try:
        return Recipe.model_validate(raw, context={"run_code": run_code})
    except ValidationError as error:
        # Pydantic compares sections only where all of them are valid.
        found = [*explained(error, raw), *lenient(Recipe, raw).own_problems()]
        raise RecipeError(source, dict.fromkeys(found)) from error


def parse_options(raw: Mapping[str, Any], clients: Mapping[str, TaskHolder], source: str) -> RunOptions:
    """Validate the options of a run of Trainer clients.

    Args:
        raw: the options as a recipe holds them.
        clients: by id.
        source: starts each line of the error.

    Raises:
        RecipeError: with every problem at once, each with its path.
    """
    problems: list[str] = []
    try:
        options = RunOptions.model_validate(raw)
    except ValidationError as error:
        problems += explained(error, raw)
        options = lenient(RunOptions, raw)
    tasks = sorted({task for client in clients.values() for task in client.tasks or ()})
    federation = options.federation or lenient(FederationSection, {})
    problems += federation_problems(federation, tasks, clients)
    problems += (f"federation.{problem}" for problem in options.algorithm.federation_problems(federation))
    problems += (f"algorithm.{problem}" for problem in options.algorithm.problems(tasks))
    if problems:
        raise RecipeError(source, dict.fromkeys(problems))
    return options


def overridden(recipe: Recipe, overrides: Sequence[str], source: str = "recipe") -> Recipe:
    """Return a recipe with overrides applied; see `load_recipe`.

    Raises:
        RecipeError: as `load_recipe`.
    """
    return parse_recipe(_overridden(recipe.model_dump(mode="json"), overrides, source), source)


def _overridden(raw: dict[str, Any], overrides: Sequence[str], source: str) -> dict[str, Any]:
    section = raw.get("algorithm")
    for name in (text for key, _, text in (one.partition("=") for one in overrides) if key == "algorithm.name"):
        if isinstance(section, dict) and section.get("name", "tap") != name and METHODS.problem(name) is None:
            # Keep what both methods have, except the options of a user-defined method.
            known = section_class({"name": name}).model_fields.keys() - {"options"}
            if dropped := sorted(section.keys() - known):
                logger.warning("algorithm.name=%s: dropped algorithm.%s of the recipe", name, ", ".join(dropped))
            raw["algorithm"] = section = {key: value for key, value in section.items() if key in known}
    if problems := [problem for override in overrides if (problem := _apply_override(raw, override)) is not None]:
        raise RecipeError(source, problems)
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> str | None:
    """Set one value, or return the problem with the override."""
    key, equals, text = override.partition("=")
    path = key.split(".")
    if not equals or not all(path):
        return f'"{override}": expected key.sub=value'
    if len(path) > MAX_DEPTH:
        return f'"{override[:_LONGEST]}...": has {len(path)} levels, expected at most {MAX_DEPTH}'
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        return f'"{override}": the value is not YAML'
    section = raw
    for name in path[:-1]:
        if section.get(name) is None:
            section[name] = {}
        if not isinstance(section[name], dict):
            return f'"{override}": "{name}" is a value, not a section'
        section = section[name]
    section[path[-1]] = value
    return None


_MOST_EXPLAINED = 40


def explained(error: ValidationError, raw: Mapping[str, Any], kind: type[BaseModel] = Recipe) -> list[str]:
    """Return pydantic's errors as lines of `path: problem`, of the first ones."""
    try:
        found = error.errors()
        more = [f"{len(found) - _MOST_EXPLAINED} more problems"] if len(found) > _MOST_EXPLAINED else []
        return [*(_explain(problem, raw, kind) for problem in found[:_MOST_EXPLAINED]), *more]
    except UnicodeEncodeError as wrong:
        text = wrong.object[max(0, wrong.start - 20) : wrong.end]
        return [f"has a text with a lone surrogate, which is not Unicode: {text!r}"]


_MARKS = ("[key]", "[name]", "[names]", "[list]", "[mapping]", "[options]")
"""Parts of a location that no recipe has: pydantic's mark of a wrong key, and the tags of our unions."""


def _explain(problem: Any, raw: Mapping[str, Any], kind: type[BaseModel]) -> str:
    """Turn one of pydantic's errors into `path: problem`."""
    parts = list(map(str, problem["loc"]))
    location = [part for part in parts if part not in _MARKS]
    path = ".".join(location)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        location = [part for part in parts[:-1] if part not in _MARKS] + parts[-1:]
        path = ".".join(location)
        return f"{path}: unknown key{did_you_mean(location[-1], _keys_at(location[:-1], raw, kind))}"
    if problem["type"] == "missing":
        return f"{path}: missing"
    if problem["type"] == "string_pattern_mismatch":
        return f"{path}: not a name, expected the pattern {problem['ctx']['pattern']}"
    if problem["type"] == "method":
        return f"{path}.name: {problem['msg']}"
    if problem["type"] == "problem":
        return f"{path}: {problem['msg']}"
    if problem["type"] in ("model_type", "dict_type"):
        return f"{path}: expected keys and values, got {_shown(problem['input'])}"
    if problem["type"] == "too_short":
        return f"{path}: expected at least {problem['ctx']['min_length']}, got {problem['ctx']['actual_length']}"
    message = "a list" if problem["type"] == "tuple_type" else problem["msg"].removeprefix("Input should be ")
    message = re.sub(r"^(greater|less) than", r"a number \1 than", message)
    if problem["type"] == "string_type" and isinstance(problem["input"], bool | int | float):
        message += " (put quotes around it)"
    return f"{path}: expected {message}, got {_shown(problem['input'])}"


_LONGEST = 80  # characters of a value in a message


def _shown(value: Any) -> str:
    """Return a value for a message."""
    if value is None:
        return "nothing"
    shown = type(value).__name__ if isinstance(value, dict | list) else f"{value!r}"
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def _keys_at(location: Sequence[str], raw: Mapping[str, Any], kind: type[BaseModel]) -> list[str]:
    """Return the keys that the section at a path may have."""
    kinds: list[Any] = [kind]
    if location[:1] == ["algorithm"]:
        section = raw["algorithm"]
        kinds, location = [section_class(section)], location[1:]
        if kinds == [OtherAlgorithmSection] and location:
            kinds, location = [options_class_of(METHODS.find(section["name"]))], location[1:]
    for name in location:
        inner = [typing.get_args(kind)[1] for kind in kinds if typing.get_origin(kind) is dict]
        inner += [kind.model_fields[name].annotation for kind in _models(kinds) if name in kind.model_fields]
        kinds = [alternative for kind in inner for alternative in _alternatives(kind)]
    dataclass_fields = (
        field.name for kind in kinds if dataclasses.is_dataclass(kind) for field in dataclasses.fields(kind)
    )
    return sorted({*dataclass_fields, *(key for kind in _models(kinds) for key in kind.model_fields)})


def _models(kinds: Sequence[Any]) -> list[type[BaseModel]]:
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _alternatives(kind: Any) -> list[Any]:
    """Return the members of a union, without annotations."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return [alternative for part in typing.get_args(kind) for alternative in _alternatives(part)]
    return _alternatives(typing.get_args(kind)[0]) if typing.get_origin(kind) is typing.Annotated else [kind]
