"""Stage 1 in any `Trainer`: another adapter's weights replace the trained ones if they are better by a margin."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tap_hf.event_log import append_event
from tap_hf.training.peft_adapter import (
    NO_LOSS,
    LiveAdapter,
    SavedAdapter,
    best_model_problem,
    evaluation_metrics,
    validation_loss,
)
from tap_hf.training.replacement import absolute_margin, replace_by_margin


@dataclass(frozen=True, kw_only=True)
class AdapterDecision:
    """One comparison of the active adapter with one candidate, as logged in `events.jsonl`.

    Both losses are on the evaluation data. The margin is absolute: a relative one is multiplied by the adapter's loss.
    """

    event: Literal["adapter_decision"] = "adapter_decision"
    step: int
    adapter: str
    candidate: str
    adapter_loss: float
    candidate_loss: float
    margin: float
    replaced: bool


class AdapterReplacementCallback(TrainerCallback):
    """Compares the active adapter with others at each evaluation in training, and takes the best one's weights.

    The losses are those of the trainer's own evaluation: its `compute_loss`, collator and data. If the best candidate's
    loss is lower than the adapter's by more than the margin, its weights are copied into the active adapter, and the
    optimizer's state of these parameters is dropped. Every comparison goes to the trainer's log
    (`replacement/<candidate>/loss`, `replacement/<candidate>/replaced`) and as an `adapter_decision` to `events.jsonl`
    in its output directory. A callback that never replaces changes no bit of the training.

    Evaluations outside training, or with a prefix other than `eval`, replace nothing. A checkpoint at the step of a
    replacement has the weights after it. DeepSpeed and FSDP, which split parameters, are not supported.

    Args:
        trainer: of a `PeftModel` with one active adapter; add the callback to it.
        candidates: names of adapters in the model, folders, Hub ids, or `SavedAdapter`s. Those in the model are read at
            each evaluation, the others once.
        margin: how much better a candidate must be.
        relative: whether the margin is a share of the adapter's loss.
        eval_dataset: name of the one that decides, where the trainer has several.

    Raises:
        AdapterError: if a candidate's values do not fit or would mean something else in the active adapter.
        ValueError: if the evaluation data, or the best model at the end, would be chosen by other values.

    Examples:
        >>> callback = AdapterReplacementCallback(trainer, ["general", "org/adapter"], margin=0.01)  # doctest: +SKIP
        >>> trainer.add_callback(callback)  # doctest: +SKIP
    """

    def __init__(
        self,
        trainer: Trainer,
        candidates: Sequence[str | SavedAdapter],
        *,
        margin: float = 0.01,  # TAP, FLAVA
        relative: bool = False,
        eval_dataset: str | None = None,
    ) -> None:
        named = trainer.eval_dataset if isinstance(trainer.eval_dataset, Mapping) else {}
        if named and eval_dataset not in named:
            raise ValueError(f"eval_dataset={eval_dataset!r}, expected the one of {', '.join(named)} that decides")
        chosen_by = trainer.args.metric_for_best_model
        sets_of_metric = [name for name in named if (chosen_by or "").removeprefix("eval_").startswith(f"{name}_")]
        if named and chosen_by and max(sets_of_metric, key=len, default=None) != eval_dataset:
            raise ValueError(
                f'metric_for_best_model="{chosen_by}" is not of the evaluation set "{eval_dataset}" that decides on '
                "replacements: it may be computed before one. Expected a metric of that set."
            )
        self._trainer = trainer
        self._adapter = LiveAdapter(trainer.model)
        if problem := best_model_problem(trainer, self._adapter):
            raise ValueError(problem)
        in_model = trainer.model.peft_config
        self._read_once = {str(c): self._adapter.read(c) for c in candidates if c not in in_model}
        self._candidates = tuple(map(str, candidates))
        for candidate in self._candidates:
            if candidate not in self._read_once:
                self._adapter.read(candidate)  # to raise now rather than after hours of training
        self._margin = margin
        self._relative = relative
        self._eval_dataset = eval_dataset

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move to the front: callbacks such as early stopping shall see the metrics after a replacement."""
        callbacks = self._trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Compare, and replace."""
        prefix = "eval" if self._eval_dataset is None else f"eval_{self._eval_dataset}"
        if not self._trainer.is_in_train or metrics is None or f"{prefix}_runtime" not in metrics:
            return
        if f"{prefix}_loss" not in metrics:
            raise ValueError(NO_LOSS)
        sets = {c: self._read_once.get(c) or self._adapter.read(c) for c in self._candidates}
        losses = {}
        for candidate, adapters in sets.items():
            with self._adapter.held(adapters):
                losses[candidate] = validation_loss(self._trainer, self._eval_dataset)
        best = min(losses, key=lambda candidate: (math.isnan(losses[candidate]), losses[candidate]))
        own = float(metrics[f"{prefix}_loss"])
        replaced = replace_by_margin(losses[best], own, self._margin, self._relative)
        if replaced:
            self._adapter.load(sets[best])
            for parameter in (p for tensors in self._adapter.parameters.values() for p in tensors.values()):
                if optimizer is not None:
                    optimizer.state.pop(parameter, None)
            # `Trainer` and the callbacks after this one choose the best checkpoint by what stands in this dict.
            found = evaluation_metrics(self._trainer, self._eval_dataset)
            new = {f"{prefix}_{name.removeprefix('eval_')}": value for name, value in found.items()}
            metrics.update(new)
            self._trainer.log(new)
        margin = absolute_margin(self._margin, own, self._relative)
        for candidate, loss in losses.items():
            decision = AdapterDecision(
                step=state.global_step,
                adapter=self._adapter.name,
                candidate=candidate,
                adapter_loss=own,
                candidate_loss=loss,
                margin=margin,
                replaced=replaced and candidate == best,
            )
            self._emit(decision, args)

    def _emit(self, decision: AdapterDecision, args: TrainingArguments) -> None:
        name = f"replacement/{decision.candidate}"
        self._trainer.log({f"{name}/loss": decision.candidate_loss, f"{name}/replaced": float(decision.replaced)})
        if self._trainer.is_world_process_zero():
            folder = Path(args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            append_event(folder, decision)
