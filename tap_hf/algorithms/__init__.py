"""The methods: one file each, with its options beside its class."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.algorithms.apfl import Apfl
    from tap_hf.algorithms.base import (
        Algorithm,
        AlgorithmContext,
        Client,
        ClientResult,
        ClientState,
        ClientUpdate,
        LocalTraining,
    )
    from tap_hf.algorithms.baselines import Centralised, HeadsOnly, heads_of
    from tap_hf.algorithms.best_round import keep_best, selected
    from tap_hf.algorithms.build import build_algorithm, build_method
    from tap_hf.algorithms.disentafl import DisentAfl
    from tap_hf.algorithms.ditto import Ditto
    from tap_hf.algorithms.divergence import refuse_diverged, result_of
    from tap_hf.algorithms.fedavg import FedAvg
    from tap_hf.algorithms.fedper import FedPer
    from tap_hf.algorithms.fedprox import FedProx
    from tap_hf.algorithms.fedrep import FedRep
    from tap_hf.algorithms.final_choice import with_best_sets
    from tap_hf.algorithms.local import Local, LocalSection
    from tap_hf.algorithms.per_fedavg import PerFedAvg
    from tap_hf.algorithms.pfedme import PFedMe
    from tap_hf.algorithms.scaffold import Scaffold, ScaffoldSection
    from tap_hf.algorithms.start import Start, StartSection, start_of_regular
    from tap_hf.algorithms.tap import DistillationSection, ReplacementSection, Tap
    from tap_hf.algorithms.updates import update_of
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
