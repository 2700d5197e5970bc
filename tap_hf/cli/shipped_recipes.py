"""Find a recipe: a file, a recipe of the package, or one on the Hub."""

import importlib.resources
from pathlib import Path

from tap_hf.errors import RecipeError


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes of the package, by name such as `smoke/two_pairs`."""
    root = Path(str(importlib.resources.files("tap_hf") / "recipes"))
    if not root.is_dir():  # an editable installation: the folder is beside the package
        root = Path(__file__).resolve().parents[2] / "recipes"
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def find_recipe(path: Path) -> Path:
    """Return the file of a path, of a shipped recipe's name, or of a `hub://` reference."""
    if path.parts[:1] == ("hub:",):
        from tap_hf.recipe.hub_reference import fetch

        return fetch("hub://" + "/".join(path.parts[1:]))  # `Path` merges the two slashes
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if (found := shipped.get(path.as_posix().removeprefix("recipes/").removesuffix(".yaml"))) is not None:
        return found
    raise RecipeError(str(path), [f"not a file or recipe of tap_hf; expected a file or one of {', '.join(shipped)}"])
