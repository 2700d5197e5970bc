"""`tap-hf validate`, `data`, `recipes` and `backbone export`: commands before a run."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from tap_hf.cli.options import AsJson, Overrides, RecipePath
from tap_hf.cli.shipped_recipes import find_recipe, shipped_recipes
from tap_hf.cli.terminal import err, out, quiet_libraries, say, wide
from tap_hf.errors import BackboneError

if TYPE_CHECKING:
    from tap_hf.recipe import Recipe


def validate(
    recipe: RecipePath,
    overrides: Overrides = None,
    site: Annotated[Path | None, typer.Option(help="Check the rows of this site.yaml against it too.")] = None,
    client: Annotated[str | None, typer.Option(help="The client whose site it is.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe without running it, and say what its training costs; all problems are shown at once."""
    from tap_hf.benchmark.methods import compared
    from tap_hf.recipe import load_recipe
    from tap_hf.recipe.plan import plan_lines, plan_of

    if (site is None) != (client is None):
        raise typer.BadParameter("expected both --site site.yaml and --client ID, or neither", param_hint="--site")
    loaded = load_recipe(find_recipe(recipe), overrides or [])
    if loaded.benchmark is not None:
        compared(loaded)  # refuses a method that it does not know
    counts = {"clients": len(loaded.clients), "tasks": len(loaded.tasks), "rounds": loaded.federation.rounds}
    if site is not None and client is not None:
        _validate_site(loaded, site, client, as_json=as_json)
        return
    if as_json:
        plan = plan_of(loaded)
        steps = {"steps_in_rounds": plan.in_rounds, "steps_after": plan.after, "batches_per_step": plan.batches}
        say(json.dumps({"name": loaded.name, **counts, **steps}, indent=2))
        return
    words = [f"{count} {name if count > 1 else name.removesuffix('s')}" for name, count in counts.items()]
    say(f"{loaded.name}: valid, {', '.join(words)}")
    for line in plan_lines(loaded):
        say(line)


def _validate_site(recipe: "Recipe", site: Path, client: str, *, as_json: bool) -> None:
    """Check a site's rows, columns and labels, without a backbone; the recipe must list the labels."""
    from tap_hf.recipe import load_site
    from tap_hf.recipe.labels import refuse_unlisted_labels
    from tap_hf.recipe.site_section import at_site, own_part

    refuse_unlisted_labels(recipe)
    part = own_part(at_site(recipe, client, load_site(site)), client)
    quiet_libraries()
    from tap_hf.cli.inspection_tables import holdings_table
    from tap_hf.data.inspection import inspect_data

    found = inspect_data(part)
    if as_json:
        say(json.dumps({"name": recipe.name, "client": client, **found.record()}, indent=2))
        return
    wide(out).print(holdings_table(found))
    say(f"{site}: fits {recipe.name} as the site of {client}")


def data(
    recipe: RecipePath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="Draw clients against targets into this file.")] = None,
) -> None:
    """Show which client has which rows, without training or loading a backbone."""
    from tap_hf.recipe import load_recipe

    show_data(load_recipe(find_recipe(recipe), overrides or []), plot, as_json=as_json)


def show_data(loaded: "Recipe", plot: Path | None = None, *, as_json: bool = False) -> None:
    """Print which client has which rows; draw it too, if there is a file for it."""
    with err.status("allocating rows"):
        quiet_libraries()
        from tap_hf.cli.inspection_tables import datasets_table, holdings_table, overlap_lines
        from tap_hf.data.inspection import inspect_data

        found = inspect_data(loaded)
    if plot is not None:
        from tap_hf.report.holdings import plot_holdings

        plot_holdings(found, plot)
    if as_json:
        say(json.dumps(found.record(), indent=2))
        return
    console = wide(out)
    console.print(holdings_table(found))
    console.print(datasets_table(found))
    for line in overlap_lines(found):
        say(line)
    for name, section in loaded.tasks.items():
        if section.labels is None and (labels := found.tasks[name].labels):
            line = f"tasks.{name}, for a federation of several parties: labels: {json.dumps(list(labels))}"
            console.print(Text(line, overflow="fold"))


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the recipes that come with tap_hf, print one, or print their JSON Schema."""
    if schema:
        from tap_hf.recipe import Recipe

        say(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    if name is not None:
        from tap_hf.recipe import recipe_text

        say(recipe_text(find_recipe(Path(name))), end="")
        return
    shipped = {key: _first_line(path) for key, path in shipped_recipes().items()}
    if as_json:
        say(json.dumps({"recipes": shipped}, indent=2))
        return
    for key, line in shipped.items():
        say(f"{key:24} {line}")


def export_backbone(directory: Annotated[Path, typer.Argument(help="A new or empty folder.")]) -> None:
    """Write the embedded backbone as a plain transformers checkpoint."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BackboneError(f"{directory} exists and is not empty. Choose another folder.")
    from tap_hf.models.backbones.tiny import checkpoint_dir

    try:
        shutil.copytree(checkpoint_dir(), directory, dirs_exist_ok=True)
    except OSError as error:
        raise BackboneError(f"{directory} cannot be written ({error.strerror}). Choose another folder.") from error
    say(directory)


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
