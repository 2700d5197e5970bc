"""`site.yaml`: what is local to one client's site, and what may leave it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError

from tap_hf.errors import RecipeError
from tap_hf.recipe.client_section import ExamplesSection
from tap_hf.recipe.code_paths import beside
from tap_hf.recipe.column_templates import Columns
from tap_hf.recipe.dataset_section import DatasetSection
from tap_hf.recipe.federation_section import ReachSection
from tap_hf.recipe.loading import explained, parse_recipe, recipe_text
from tap_hf.recipe.section import Section
from tap_hf.recipe.sections import Recipe
from tap_hf.recipe.values import Names, repeated
from tap_hf.recipe.yaml_text import read_yaml
from tap_hf.sharing import Shareable
from tap_hf.tasks.task import Name
from tap_hf.user_code import code_file


class SitePrivacySection(Section):
    """What leaves the site beside the recipe's communicated components and their numbers of examples."""

    share: Annotated[tuple[Shareable, ...], Field(strict=False)] = Field(
        (),
        description="decisions (with the losses that they compared), losses (of training and validation), metrics (of "
        "the evaluation, without scores of samples), costs (steps, seconds)",
    )

    def own_problems(self) -> Iterator[str]:
        """Yield names that are listed twice."""
        yield from (f"share: {name} is listed twice" for name in repeated(self.share))


class SiteSection(Section):
    """One client's site."""

    datasets: dict[Name, DatasetSection] = Field({}, description="the site's own rows of datasets of the recipe")
    columns: dict[Name, Columns] = Field({}, description="by task, its columns of them, where they have other names")
    examples: ExamplesSection | None = Field(None, description="how many the client holds; null: as in the recipe")
    privacy: SitePrivacySection = SitePrivacySection()
    device: Literal["cpu", "cuda"] | None = Field(None, description="null: the Trainer's choice")
    cpu_threads: PositiveInt | None = Field(None, le=1024, description="of this machine; null: as in the recipe")
    allow: Names | None = Field(
        None,
        description="the components (such as text__classification) and fields (such as metrics) that may ever leave; "
        "null: the components that the recipe communicates, and privacy.share",
    )

    def own_problems(self) -> Iterator[str]:
        """Yield fields that are shared but not allowed."""
        if self.allow is not None:
            yield from (
                f"privacy.share: {name} is not in allow" for name in self.privacy.share if name not in self.allow
            )


def load_site(file: Path) -> SiteSection:
    """Load a `site.yaml`.

    Raises:
        RecipeError: with every problem at once, each with its path.
    """
    try:
        raw = read_yaml(recipe_text(file))
    except yaml.YAMLError as error:
        raise RecipeError(str(file), [f"is not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(raw, dict):
        raise RecipeError(str(file), ["expected keys and values, such as datasets: {notes: {...}}"])
    try:
        return SiteSection.model_validate(beside(raw, file.parent))
    except ValidationError as error:
        raise RecipeError(str(file), explained(error, raw, SiteSection)) from error


def at_site(recipe: Recipe, client: str, site: SiteSection) -> Recipe:
    """Return the recipe as one client's site has it, with the site's own datasets.

    Raises:
        RecipeError: if the recipe has no such client, or if the site does not fit it.
    """
    if client not in recipe.clients:
        from_ = ", ".join(list(recipe.clients)[:20])
        raise RecipeError(recipe.name, [f'clients: there is no client "{client}", expected one of {from_}'])
    values = recipe.model_dump(mode="json")
    own = site.model_dump(mode="json", include={"datasets", "columns", "examples"}, exclude_none=True)
    used = {recipe.tasks[task].dataset for task in recipe.clients[client].tasks}
    if missing := sorted(used - site.datasets.keys()):
        said = f"missing, the tasks of {client} use it; say where its rows are, such as {{source: csv, path: FILE}}"
        raise RecipeError("site.yaml", [f"datasets.{name}: {said}" for name in missing])
    values["clients"][client] |= {key: value for key, value in own.items() if value}
    if site.device is not None:
        values["training"]["trainer"]["use_cpu"] = site.device == "cpu"
    if site.cpu_threads is not None:
        values["cpu_threads"] = site.cpu_threads
    return parse_recipe(values, "site.yaml")


def own_part(recipe: Recipe, client: str) -> Recipe:
    """Return the part of a recipe that one client's site loads: its own tasks and rows."""
    section = recipe.clients[client]
    tasks = {name: task for name, task in recipe.tasks.items() if name in section.tasks}
    datasets = {
        name: dataset for name, dataset in recipe.datasets.items() if name in {t.dataset for t in tasks.values()}
    }
    reach = {"finalize": ReachSection(), "evaluate": ReachSection()}  # whether the client is chosen, the server says
    federation = recipe.federation.model_copy(update=reach)
    own = {"clients": {client: section}, "tasks": tasks, "datasets": datasets, "federation": federation}
    return recipe.model_copy(update=own)


def common_values(recipe: Recipe) -> Any:
    """Return what all parties of a federation must agree on: a recipe without what is local to a machine or a site."""
    values = recipe.model_dump(
        mode="json", exclude={"cpu_threads", "engine", "cache", "prefix_cache", "report", "predictions", "benchmark"}
    )
    del values["datasets"]  # each site has its own files
    for client in values["clients"].values():
        for key in ("datasets", "columns", "examples"):
            del client[key]
    for key in ("use_cpu", "report_to"):
        values["training"]["trainer"].pop(key, None)
    return _with_code(values, {name: f"{Path(name).name} {code_file(name).sha256}" for name in recipe.code})


def _with_code(values: Any, code: Mapping[str, str]) -> Any:
    """Return plain values with each name of code replaced by what it is, wherever its file lies."""
    if isinstance(values, dict):
        return {key: _with_code(value, code) for key, value in values.items()}
    if isinstance(values, list):
        return [_with_code(value, code) for value in values]
    return code.get(values, values) if isinstance(values, str) else values
