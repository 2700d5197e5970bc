"""The metrics that a recipe can name, and what each of them takes."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import evaluate

from tap_hf.pairs import Modality
from tap_hf.tasks.metrics.accuracy import Accuracy
from tap_hf.tasks.metrics.bertscore import BertScore
from tap_hf.tasks.metrics.exact_match import ExactMatch
from tap_hf.tasks.metrics.macro_f1 import MacroF1
from tap_hf.tasks.metrics.meteor import Meteor
from tap_hf.tasks.metrics.mse import MeanSquaredError
from tap_hf.tasks.metrics.perplexity import Perplexity
from tap_hf.tasks.metrics.psnr import PeakSignalToNoiseRatio
from tap_hf.tasks.metrics.rouge_l import RougeL
from tap_hf.tasks.metrics.spec import MetricSpec


@dataclass(frozen=True)
class MetricInfo:
    """A metric a recipe can name.

    Attributes:
        module: makes the `evaluate` module; its result holds one value under the metric's name.
        output: what it judges: text, an image, or a class (`None`).
        higher_is_better: whether larger values are better.
        of_likelihoods: whether it judges the likelihood of the references instead of predictions.
        needed: the options that a `MetricSpec` must give.
        optional: those that it may give.
    """

    module: Callable[..., evaluate.Metric]
    output: Modality | None
    higher_is_better: bool
    of_likelihoods: bool = False
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


METRICS = {
    "accuracy": MetricInfo(Accuracy, output=None, higher_is_better=True),
    "macro_f1": MetricInfo(MacroF1, output=None, higher_is_better=True),
    "exact_match": MetricInfo(ExactMatch, output=Modality.TEXT, higher_is_better=True),
    "rouge_l": MetricInfo(RougeL, output=Modality.TEXT, higher_is_better=True),
    "meteor": MetricInfo(Meteor, output=Modality.TEXT, higher_is_better=True),
    "bertscore": MetricInfo(
        BertScore, output=Modality.TEXT, higher_is_better=True, needed=("model", "layer"), optional=("revision",)
    ),
    "perplexity": MetricInfo(Perplexity, output=Modality.TEXT, higher_is_better=False, of_likelihoods=True),
    "mse": MetricInfo(MeanSquaredError, output=Modality.IMAGE, higher_is_better=False),
    "psnr": MetricInfo(PeakSignalToNoiseRatio, output=Modality.IMAGE, higher_is_better=True),
}


def option_problems(spec: MetricSpec) -> Iterator[str]:
    """Yield what is wrong with the options of a metric of `METRICS` or of the user's own, as `option: problem`."""
    if spec.path is None:
        what, needed, optional = f'"{spec.name}"', METRICS[spec.name].needed, METRICS[spec.name].optional
    else:
        what, needed, optional = "a metric of your own", ("path", "higher_is_better"), ()
    given = {name for name, value in asdict(spec).items() if value is not None} - {"name"}
    yield from (f"{name}: missing, {what} needs it" for name in needed if name not in given)
    yield from (f"{name}: {what} has no use for it" for name in sorted(given.difference(needed, optional)))
