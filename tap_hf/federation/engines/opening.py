"""Which engine a recipe and the way this process was started ask for."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tap_hf.errors import RecipeError
from tap_hf.federation.engines.base import Engine
from tap_hf.federation.engines.in_process import InProcess
from tap_hf.federation.engines.processes import open_processes
from tap_hf.launcher import HOW_TO_LAUNCH, find_place
from tap_hf.recipe import Recipe

logger = logging.getLogger(__name__)


@contextmanager
def open_engine(recipe: Recipe) -> Iterator[Engine]:
    """Open the recipe's engine for one run.

    Raises:
        RecipeError: if the recipe does not match how this process was started.
        ProcessError: if another process failed or died.
    """
    section, processes = recipe.engine, find_place().world_size
    split = section.split or "clients"
    if processes == 1:
        if section.name == "processes":
            logger.warning(
                "engine.name is processes, but there is one process, which trains all clients. Start several with %s.",
                HOW_TO_LAUNCH,
            )
        yield InProcess()
        return
    if section.name == "in_process":
        problem = f"engine.name: got in_process, but a launcher started {processes} processes, which would repeat the "
        problem += "same run. Set engine.name=processes, or start it without a launcher"
        raise RecipeError(recipe.name, [problem])
    cohort, batch = recipe.federation.clients_per_round, recipe.training.batch_size
    if split == "data" and batch % processes:
        problem = f"training.batch_size: got {batch}, expected a multiple of {processes}, the number of processes that "
        problem += "split each batch (engine.split: data)"
        raise RecipeError(recipe.name, [problem])
    if split == "clients" and cohort < processes:
        idle = processes - cohort
        logger.info("%d processes, %d clients per round: %d will be idle in rounds.", processes, cohort, idle)
    with open_processes(split, recipe.training.trainer) as engine:
        yield engine
