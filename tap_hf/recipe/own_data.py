"""A recipe in parts: the clients that share datasets, and each client that has its own.

A client's own rows are allocated from its part alone, so that a site which knows only this part gets the same rows.
"""

from collections.abc import Mapping

from tap_hf.recipe.client_section import ClientSection
from tap_hf.recipe.column_templates import Columns
from tap_hf.recipe.sections import Recipe, own_dataset


def data_parts(recipe: Recipe) -> list[Recipe]:
    """Return a recipe in parts whose rows are planned apart, each with its own clients, tasks and datasets only.

    The tasks of a client's part read its own datasets, under the names that `Recipe.sources` gives them.
    """
    if not any(client.datasets for client in recipe.clients.values()):
        return [recipe]
    sharing = {id_: _with_tasks(client, shared_tasks(recipe, id_)) for id_, client in recipe.clients.items()}
    parts = [_part(recipe, {id_: client for id_, client in sharing.items() if client.tasks}, {})]
    for id_, client in recipe.clients.items():
        if own := [task for task in client.tasks if task not in sharing[id_].tasks]:
            parts.append(_part(recipe, {id_: _with_tasks(client, own)}, client.columns, id_))
    return [part for part in parts if part.clients]


def shared_tasks(recipe: Recipe, client: str) -> list[str]:
    """Return the tasks of a client whose rows it has of a dataset that others may use."""
    section = recipe.clients[client]
    return [task for task in section.tasks if recipe.tasks[task].dataset not in section.datasets]


def _with_tasks(client: ClientSection, tasks: list[str]) -> ClientSection:
    slices = {task: part for task, part in client.slices.items() if task in tasks}
    return client.model_copy(update={"tasks": tuple(tasks), "slices": slices})


def _part(
    recipe: Recipe,
    clients: dict[str, ClientSection],
    columns: Mapping[str, Columns],
    owner: str | None = None,
) -> Recipe:
    held = {task for client in clients.values() for task in client.tasks}
    tasks = {
        name: section.model_copy(
            update={
                "columns": columns.get(name, section.columns),
                "dataset": section.dataset if owner is None else own_dataset(owner, section.dataset),
            }
        )
        for name, section in recipe.tasks.items()
        if name in held
    }
    return recipe.model_copy(update={"clients": clients, "tasks": tasks})
