"""The model of one client of a finished run."""

from pathlib import Path

from tap_hf.errors import RunDirectoryError, did_you_mean
from tap_hf.models.adapters import select, with_rank
from tap_hf.models.build import build_model, open_backbone
from tap_hf.models.tap_model import TapModel
from tap_hf.recipe import parse_recipe
from tap_hf.records.directory import RunDirectory
from tap_hf.records.run_record import RUN_FILE, read_finished
from tap_hf.tasks.results import SETS, sets_of


def load_client_model(run_dir: str | Path, client: str, set_name: str = "personal") -> TapModel:
    """Return the live model with one client's set loaded.

    Args:
        run_dir: a finished run.
        client: its id.
        set_name: which of its sets: those of `SETS` that the run has.

    Raises:
        RunDirectoryError: if the run has no such client or set.
    """
    directory = RunDirectory(Path(run_dir))
    record = read_finished(directory.path)
    recipe = parse_recipe(record.recipe.values, f"{run_dir}/{RUN_FILE}", run_code=False)
    if client not in recipe.clients:
        raise RunDirectoryError(f'The run has no client "{client}"{did_you_mean(client, recipe.clients)}')
    if set_name not in SETS:
        raise RunDirectoryError(f'There is no set "{set_name}"{did_you_mean(set_name, SETS)}')
    tasks = [record.tasks[name] for name in recipe.clients[client].tasks]
    model = build_model(recipe, open_backbone(recipe), tasks)
    last = recipe.federation.rounds - 1
    sets = directory.sets(client)
    if "global" in sets_of(record.results or ()):  # not where the server has only some components, or there is none
        sets["global"] = directory.server(last).components
    if set_name not in sets:
        method = recipe.algorithm.name
        raise RunDirectoryError(
            f'Client "{client}" has no set "{set_name}" after {method}; it has {", ".join(sorted(sets))}.'
        )
    adapters = sets[set_name]
    own = select(adapters, model.components_of(model.tasks))
    model.load(with_rank(own, recipe.clients[client].rank))
    return model
