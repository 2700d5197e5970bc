"""Label spaces that a recipe lists, on which sites that see different rows agree."""

from tap_hf.errors import RecipeError
from tap_hf.pairs import ModalityTaskPair
from tap_hf.recipe.sections import Recipe


def refuse_unlisted_labels(recipe: Recipe) -> None:
    """Raise unless each classification lists its labels: sites that see different rows must agree on them.

    Raises:
        RecipeError: with the lines to add.
    """
    problems = [
        f"tasks.{name}.labels: missing; sites must agree on the labels and their order. Add a line such as "
        f"`labels: [first, second]` to the task; `tap-hf data RECIPE` prints it from rows that you have"
        for name, section in recipe.tasks.items()
        if section.labels is None and ModalityTaskPair.parse(section.pair).output is None
    ]
    if problems:
        raise RecipeError(recipe.name, problems)
