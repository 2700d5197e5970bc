"""What is wrong between the sections of a recipe.

A section that has problems of its own may come without what is wrong in it (`None`), so that all is found at once.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from tap_hf.errors import did_you_mean
from tap_hf.pairs import SHARED_SCOPES, ModalityTaskPair, has_scope
from tap_hf.recipe.client_section import ClientSection, ExamplesSection
from tap_hf.recipe.federation_section import FederationSection, SampledSection
from tap_hf.recipe.lora_section import AdaptersSection
from tap_hf.recipe.task_section import TaskSection


class TaskHolder(Protocol):
    """A client as far as its tasks go."""

    @property
    def tasks(self) -> Collection[str] | None:
        """Their names."""
        ...


Tasks = Mapping[str, TaskSection]
Clients = Mapping[str, ClientSection]


def task_problems(tasks: Tasks, datasets: Collection[str], clients: Clients) -> Iterator[str]:
    """Yield tasks without their dataset, and those that no client has."""
    for name, task in tasks.items():
        if datasets and task.dataset is not None and task.dataset not in datasets:
            yield f'tasks.{name}.dataset: unknown dataset "{task.dataset}"{did_you_mean(task.dataset, datasets)}'
    used = {task for client in clients.values() for task in client.tasks or ()}
    for name in sorted(tasks.keys() - used if clients else ()):
        yield f"tasks.{name}: no client has this task; give it to one or delete it"


def client_problems(
    clients: Clients, tasks: Tasks, groups: int | None, examples: ExamplesSection | None
) -> Iterator[str]:
    """Yield what is wrong with what single clients hold: their tasks, groups, values, slices and shared test rows."""
    for name, client in clients.items():
        for task in sorted(set(client.tasks or ())):
            if tasks and task not in tasks:
                yield f'clients.{name}.tasks: unknown task "{task}"{did_you_mean(task, tasks)}'
        own = {task: tasks[task] for task in client.tasks or () if task in tasks}
        yield from _group_problems(name, client.group, groups)
        kinds = {task: section.partition.by for task, section in own.items()}
        if client.values is not None and "column" not in kinds.values():
            yield f"clients.{name}.values: none of its tasks has partition: {{by: column}}"
        for task in client.slices:
            if task not in own:
                yield f"clients.{name}.slices.{task}: the client has no such task"
            elif kinds[task] == "shards":
                yield (
                    f"clients.{name}.slices.{task}: the task's rows are allocated in shards, which no client can choose"
                )
        yield from _own_data_problems(name, client, own)
        shared = [task for task, section in own.items() if section.shared_test]
        test, common = client.examples and client.examples.test, examples and examples.test
        if shared and test is not None and test != common:
            yield (
                f"clients.{name}.examples.test: got {test}, but tasks.{shared[0]}.shared_test judges all clients "
                f"on the same rows, examples.test: {common}"
            )


def _own_data_problems(name: str, client: ClientSection, tasks: Tasks) -> Iterator[str]:
    """Yield what is wrong with a client's own datasets, and with its columns of them."""
    used = {section.dataset: task for task, section in tasks.items()}
    for dataset in client.datasets:
        if used and dataset not in used:
            yield f"clients.{name}.datasets.{dataset}: its tasks do not use it{did_you_mean(dataset, used)}"
        elif dataset in used and tasks[used[dataset]].shared_test:
            yield (
                f"clients.{name}.datasets.{dataset}: tasks.{used[dataset]}.shared_test judges all clients on the same "
                "rows, which cannot be its own"
            )
    for task, columns in client.columns.items():
        if task not in tasks:
            yield f"clients.{name}.columns.{task}: the client has no such task"
        elif tasks[task].dataset not in client.datasets:
            yield f"clients.{name}.columns.{task}: its rows are of a dataset that others use; see tasks.{task}.columns"
        elif columns is not None and columns.keys() != tasks[task].columns.keys():
            needed = ", ".join(sorted(tasks[task].columns))
            yield f"clients.{name}.columns.{task}: got {', '.join(sorted(columns)) or 'none'}, expected {needed}"


def _group_problems(name: str, group: int | None, groups: int | None) -> Iterator[str]:
    if groups is None and group is not None:
        yield f"clients.{name}.group: got {group}, but the recipe has no `groups`"
    if groups is not None and group is None:
        yield f"clients.{name}.group: missing, the recipe has {groups} groups"
    if groups is not None and group is not None and group >= groups:
        yield f"clients.{name}.group: got {group}, expected a number less than `groups`, which is {groups}"


def lora_problems(lora: AdaptersSection, tasks: Tasks) -> Iterator[str]:
    """Yield adapters that no task would use, or that cannot be summed."""
    pairs = {ModalityTaskPair.parse(task.pair) for task in tasks.values() if task.pair is not None}
    known = sorted(pair.name for pair in pairs)
    for name in lora.pairs:
        if known and name not in known:
            yield f'lora.pairs: no task has the pair "{name}"{did_you_mean(name, known)}'
    for scope in lora.shared:
        if scope not in SHARED_SCOPES:
            yield f'lora.shared: nothing is shared over "{scope}"{did_you_mean(scope, SHARED_SCOPES)}'
        elif pairs and (sharing := sum(has_scope(pair, scope) for pair in pairs)) < 2:
            yield f"lora.shared.{scope}: {sharing} of the pairs in `tasks` use it, expected two or more; delete it"
    for path in _with_dora(lora) if lora.shared else ():
        yield f"{path}.options.use_dora: DoRA adapters cannot be summed with those of lora.shared"


def _with_dora(lora: AdaptersSection) -> list[str]:
    """Return the paths of the adapters that ask for DoRA."""
    own = {f"lora.{group}.{name}": s for group in ("pairs", "shared") for name, s in getattr(lora, group).items()}
    return [path for path, s in {"lora.default": lora.default, **own}.items() if s.options.get("use_dora") is True]


def federation_problems(
    federation: FederationSection, tasks: Collection[str], clients: Mapping[str, TaskHolder]
) -> Iterator[str]:
    """Yield cohorts and rules that do not fit the clients."""
    held_out = federation.held_out
    for client in sorted(set(held_out) - clients.keys() if clients else ()):
        yield f'federation.held_out: unknown client "{client}"{did_you_mean(client, clients)}'
    taking_part = [client for name, client in clients.items() if name not in held_out]
    if clients and federation.clients_per_round > len(taking_part):
        without = f" beside the {len(held_out)} held out" if held_out else ""
        yield (
            f"federation.clients_per_round: got {federation.clients_per_round}, but there are {len(taking_part)} "
            f"clients{without}"
        )
    yield from _reach_problems(federation, clients)
    rule = federation.aggregation
    for task in tasks:
        holders = sum(task in (client.tasks or ()) for client in taking_part)
        if holders < rule.holders_needed and rule.is_robust:
            against = f"{rule.robust} against {rule.byzantine or 1} needs {rule.holders_needed} clients"
            said = f"{against} that hold a component, but {holders} take part that have the task {task}"
            yield f"federation.aggregation.robust: {said}"


def _reach_problems(federation: FederationSection, clients: Collection[str]) -> Iterator[str]:
    """Yield clients of `finalize` and `evaluate` that there are not."""
    finalize, evaluate = federation.finalize, federation.evaluate
    if not clients or finalize is None or evaluate is None:
        return
    ends = finalize.clients if isinstance(finalize.clients, tuple) else clients
    for name, section, known in (("finalize", finalize, clients), ("evaluate", evaluate, ends)):
        of = len(known) if name == "finalize" else min(len(clients), finalize.count(len(clients)))
        for client in sorted({*section.clients} - {*known}) if isinstance(section.clients, tuple) else ():
            yield f'federation.{name}.clients: unknown client "{client}"{did_you_mean(client, known)}'
        if (count := section.count(of)) > of:
            yield f"federation.{name}.clients: got {count}, but there are {of} clients to choose from"
    if isinstance(evaluate.clients, tuple) and isinstance(finalize.clients, SampledSection):
        yield "federation.evaluate.clients: a list needs the clients of finalize as a list too, or all"
