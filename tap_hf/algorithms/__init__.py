"""The methods: rows of one table."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tap_hf.aggregation import build_aggregator
from tap_hf.aggregation.base import Aggregator
from tap_hf.algorithms.apfl import Apfl
from tap_hf.algorithms.base import Algorithm, Client, ClientResult, ClientState, ClientUpdate, LocalTraining
from tap_hf.algorithms.baselines import Centralised, HeadsOnly
from tap_hf.algorithms.disentafl import DisentAfl
from tap_hf.algorithms.ditto import Ditto
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.algorithms.fedper import FedPer
from tap_hf.algorithms.fedprox import FedProx
from tap_hf.algorithms.fedrep import FedRep
from tap_hf.algorithms.local import Local
from tap_hf.algorithms.per_fedavg import PerFedAvg
from tap_hf.algorithms.pfedme import PFedMe
from tap_hf.algorithms.scaffold import Scaffold
from tap_hf.algorithms.tap import Tap
from tap_hf.recipe import FinalSection, Recipe

__all__ = ["Algorithm", "Client", "ClientResult", "ClientState", "ClientUpdate", "LocalTraining", "build_algorithm"]

_METHODS: dict[str, Callable[[Any, Aggregator], Algorithm]] = {
    "tap": lambda o, mean: Tap(mean, o.replacement, o.distillation, o.backbone_reference, o.personal_steps),
    "local": lambda o, mean: Local(mean, o.final),
    "fedavg": lambda o, mean: FedAvg(mean, o.final),
    "fedprox": lambda o, mean: FedProx(mean, o.final, o.weight),
    "ditto": lambda o, mean: Ditto(mean, o.weight),
    "fedper": lambda o, mean: FedPer(mean, o.personal, o.final),
    "fedrep": lambda o, mean: FedRep(mean, o.personal, o.final, o.personal_share),
    "pfedme": lambda o, mean: PFedMe(mean, FinalSection(), o.weight, o.inner_steps, o.step),
    "per_fedavg": lambda o, mean: PerFedAvg(mean, o.final, o.inner_learning_rate),
    "disentafl": lambda o, mean: DisentAfl(mean, o.final, o.weight),
    "heads": lambda o, mean: HeadsOnly(mean, o.final),
    "centralised": lambda _, mean: Centralised(mean, FinalSection()),
}


def build_algorithm(recipe: Recipe, clients: Iterable[Client]) -> Algorithm:
    """Return the recipe's method for these clients."""
    options, mean = recipe.algorithm, build_aggregator(recipe)
    if options.name == "scaffold":
        taking_part = [client for client in clients if client.id not in recipe.federation.held_out]
        return Scaffold(mean, options.final, Counter(c for client in taking_part for c in client.components))
    if options.name == "apfl":
        is_sgd = str(recipe.training.trainer.get("optim", "")).startswith("sgd")
        return Apfl(mean, options.alpha, rate_power=2 if is_sgd else 1)
    return _METHODS[options.name](options, mean)
