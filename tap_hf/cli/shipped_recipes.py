"""The recipes that come with the package, and how the command line finds one."""

import importlib.resources
from pathlib import Path

from tap_hf.errors import RecipeError


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name such as `smoke/two_pairs`."""
    root = Path(str(importlib.resources.files("tap_hf") / "recipes"))
    if not root.is_dir():  # an editable installation: the folder is beside the package
        root = Path(__file__).resolve().parents[2] / "recipes"
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def find_recipe(path: Path) -> Path:
    """Return a user's file, the shipped recipe of that name, or one of the Hub by its `hub://` reference."""
    if path.parts[:1] == ("hub:",):
        from tap_hf.recipe.hub_reference import fetch

        return fetch("hub://" + "/".join(path.parts[1:]))  # of two slashes, a path has kept one
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if (found := shipped.get(path.as_posix().removeprefix("recipes/").removesuffix(".yaml"))) is not None:
        return found
    raise RecipeError(str(path), [f"no such file, and tap_hf has no recipe of that name: it has {', '.join(shipped)}"])
