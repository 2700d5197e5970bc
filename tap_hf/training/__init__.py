"""Local training and evaluation of one client."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.training.arguments import ArgumentsFactory, trainer_arguments
    from tap_hf.training.calibration import calibrated_losses
    from tap_hf.training.distillation_trainer import DistillationTrainer
    from tap_hf.training.evaluation import (
        calibrated_losses_of_heads,
        evaluate_client,
        load_metrics,
        mean_gradient,
        mean_loss,
        metric_of_constant,
        metrics_of,
    )
    from tap_hf.training.garbage import young_garbage_only
    from tap_hf.training.local_training import TapLocalTraining, train_set
    from tap_hf.training.predictions import SetPredictions, TaskPredictions
    from tap_hf.training.prefixes import Prefixes
    from tap_hf.training.regularizers import Penalty
    from tap_hf.training.replacement import Decision, absolute_margin, replace, replace_by_margin, replaced_components
    from tap_hf.training.teacher import Teacher
    from tap_hf.training.trained import Trained
    from tap_hf.training.trainer import TapTrainer, check_sizes
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
