"""The rounds of a federation."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.federation.cohort import chosen_clients, sample_cohort
    from tap_hf.federation.engines import open_engine
    from tap_hf.federation.engines.base import Engine
    from tap_hf.federation.engines.in_process import InProcess
    from tap_hf.federation.engines.processes import open_processes
    from tap_hf.federation.engines.transport import Failure, Handler, Transport
    from tap_hf.federation.messages import Parties, Request, Response
    from tap_hf.federation.parties import open_site, serve
    from tap_hf.federation.recipe_population import load_federation
    from tap_hf.federation.run import RunResult
    from tap_hf.federation.server import Federation
    from tap_hf.federation.site import Population, Site
    from tap_hf.federation.site_run import Policy, SiteRun
    from tap_hf.federation.trainer_client import TrainerClient, check_alike
    from tap_hf.federation.trainer_local_training import TrainerLocalTraining
    from tap_hf.federation.wire import Wire
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
