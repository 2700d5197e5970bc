"""What a run leaves on disk: its record, its events and its finished steps."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.records.checkpoints import Commit, Progress
    from tap_hf.records.checksums import DamagedError, Step, check_files, parse_step, write_step
    from tap_hf.records.costs import Cost, RunCost, size_of
    from tap_hf.records.directory import RunDirectory
    from tap_hf.records.events import (
        ClientEvaluated,
        ClientFinalized,
        ClientUpdated,
        ComponentWithheld,
        Event,
        FinalSetChosen,
        LoggedEvent,
        Observer,
        ReplacementDecided,
        Resumed,
        RoundFinished,
        RoundStarted,
        UpdateRefused,
        read_events,
        stage1_decisions,
        total_cost,
    )
    from tap_hf.records.lineage import lineage_of
    from tap_hf.records.lock import holder, locked
    from tap_hf.records.outgoing import Outgoing, OutgoingLog, read_outgoing
    from tap_hf.records.parsing import parse_json
    from tap_hf.records.predictions import KeptPredictions, best_rows, read_predictions, worst_rows, write_predictions
    from tap_hf.records.preflight import recorded_recipe
    from tap_hf.records.recipe_record import record_recipe
    from tap_hf.records.replacements import Replacements, replacements_by_task
    from tap_hf.records.replies import Evaluation, FinalReply, RoundReply
    from tap_hf.records.run_record import RunRecord, parse_record, read_finished, read_record, record_json, write_record
    from tap_hf.records.serialization import from_blob, load_value, save_value, to_blob
    from tap_hf.records.status import read_status, status_lines
    from tap_hf.records.steps import steps_by_set
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
