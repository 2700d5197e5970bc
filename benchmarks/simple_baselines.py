"""What simple methods reach on the same rows, without any backbone: what a federation must beat to be worth it.

Classes: logistic regression on pixels or on tf-idf of the words. Texts: for questions on pictures, logistic regression
on the question alone, and the most frequent answer; else the target of the training text with the most similar tf-idf.
Images: the mean training image.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils.logging import disable_progress_bar

from tap_hf import Backbone, DataError, Modality, Recipe, Task
from tap_hf.data.clients import ClientData, load_clients
from tap_hf.models.build import open_backbone
from tap_hf.models.tensor_dataset import TensorDataset, joined
from tap_hf.recipe import overridden
from tap_hf.recipe.sections import BenchmarkSection
from tap_hf.training.evaluation import load_metrics


@dataclass(frozen=True)
class BaselineScore:
    """What a simple method reaches at a task, as the mean over clients of the task's main metric.

    Attributes:
        task: its name.
        name: of the method.
        own: trained on each client's own rows.
        pooled: trained on the rows of all clients that take part.
    """

    task: str
    name: str
    own: float
    pooled: float


def baselines_of(recipe: Recipe) -> list[BaselineScore]:
    """Return the simple methods' scores on every task of a recipe with a `benchmark` section, mean over its seeds.

    Raises:
        DataError: if scikit-learn is absent.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise DataError('Simple baselines need scikit-learn. Run: pip install "tap_hf[demo]"') from error
    disable_progress_bar()
    section = recipe.benchmark or BenchmarkSection()
    backbone = open_backbone(recipe)
    runs = []
    for seed in section.seeds:
        _, clients = load_clients(overridden(recipe, [f"seed={seed}"]), backbone)
        taking_part = [client for client in clients if client.id not in recipe.federation.held_out]
        runs.append(simple_baselines(taking_part, backbone))
    return [
        BaselineScore(
            same[0].task, same[0].name, float(np.mean([s.own for s in same])), float(np.mean([s.pooled for s in same]))
        )
        for same in zip(*runs, strict=True)
    ]


def simple_baselines(clients: Sequence[ClientData], backbone: Backbone) -> list[BaselineScore]:
    """Return the simple methods' scores on every task of some clients.

    Args:
        clients: whose rows are used.
        backbone: whose tokenizer turns tokens into texts again; nothing else of it is used.
    """
    metrics = load_metrics(clients)
    scores = []
    tasks = {name: held.task for client in clients for name, held in client.tasks.items()}
    for name, task in sorted(tasks.items()):
        holders = [client.tasks[name] for client in clients if name in client.tasks]
        pool = joined([held.train for held in holders])
        metric = metrics[task.metrics[0]]
        for method, predict in _methods(task, backbone).items():
            own = [metric.compute(predict(h.train, h.test), h.test.references) for h in holders]
            pooled = [metric.compute(predict(pool, h.test), h.test.references) for h in holders]
            scores.append(BaselineScore(name, method, float(np.mean(own)), float(np.mean(pooled))))
    return scores


def _methods(task: Task, backbone: Backbone) -> dict[str, Any]:
    def words(data: TensorDataset) -> list[str]:
        return [backbone.tokenizer.decode(row, skip_special_tokens=True) for row in data.texts or ()]

    def majority(train: TensorDataset, test: TensorDataset) -> list[Any]:
        return [Counter(train.references).most_common(1)[0][0]] * len(test)

    if task.pair.output is Modality.IMAGE:
        return {"mean image": lambda train, test: [np.mean(train.references, axis=0).tolist()] * len(test)}
    if task.pair.output is None:
        features = _pixels if Modality.TEXT not in task.pair.modalities else _tf_idf(words)
        name = "pixels" if features is _pixels else "tf-idf"
        return {"majority": majority, f"{name} + logistic regression": _classified(features)}
    if Modality.IMAGE in task.pair.modalities:
        return {"majority": majority, "question only, tf-idf + logistic regression": _classified(_tf_idf(words))}
    return {"target of the nearest text by tf-idf": _nearest(_tf_idf(words))}


def _pixels(train: TensorDataset, test: TensorDataset) -> tuple[Any, Any]:
    seen, unseen = (data.images.flatten(1).numpy() / 255 for data in (train, test) if data.images is not None)
    return seen, unseen


def _tf_idf(words: Any) -> Any:
    def features(train: TensorDataset, test: TensorDataset) -> tuple[Any, Any]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(token_pattern=r"\S+")  # noqa: S106 - of words
        return vectorizer.fit_transform(words(train)), vectorizer.transform(words(test))

    return features


def _classified(features: Any) -> Any:
    def predict(train: TensorDataset, test: TensorDataset) -> list[Any]:
        from sklearn.linear_model import LogisticRegression

        if len(set(train.references)) == 1:
            return [train.references[0]] * len(test)
        seen, unseen = features(train, test)
        with warnings.catch_warnings():
            # Few rows may have almost as many classes; they are classes all the same.
            warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)
            model = LogisticRegression(C=10.0, max_iter=2000).fit(seen, train.references)
        return list(model.predict(unseen).tolist())

    return predict


def _nearest(features: Any) -> Any:
    def predict(train: TensorDataset, test: TensorDataset) -> list[Any]:
        seen, unseen = features(train, test)
        return [train.references[place] for place in np.asarray((unseen @ seen.T).argmax(axis=1)).ravel()]

    return predict
