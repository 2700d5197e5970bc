"""A playground in the browser: what a client's sets say of one input, side by side. Needs the extra `ui` (gradio)."""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from tap_hf.errors import TapError
from tap_hf.hub.client_model import COMPARED, ClientSets, load_client_sets, record_of
from tap_hf.models.adapters import select
from tap_hf.models.prediction import Prediction, predict_all
from tap_hf.pairs import Modality
from tap_hf.records.predictions import PredictedRow, best_rows, read_predictions, worst_rows
from tap_hf.records.run_record import RunRecord
from tap_hf.tasks import Task
from tap_hf.tasks.results import SETS

_CLIENTS_KEPT = 2  # models in memory
_SHOWN = 5  # classes of each set, and examples

Cells = list[Any]
"""Updates of a row of components, in their order."""


def playground(source: str | Path, *, revision: str | None = None, base_model: str | None = None) -> Any:
    """Return the playground of a run or repository as `gradio.Blocks`; `launch()` serves it on this machine.

    Args:
        source: a run directory, a folder of `tap-hf pull`, or a repository.
        revision: branch, tag or commit of the repository.
        base_model: folder or Hub id of the backbone, to override the repository's.

    Raises:
        TapError: if gradio is not installed, or if there is no such run or repository.

    Example:
        >>> playground("runs/quickstart").launch()  # doctest: +SKIP
    """
    gr = _gradio()
    record = record_of(source, revision)
    tasks = {
        f"{client}: {name}": (client, record.tasks[name])
        for client, held in record.finalized_clients.items()
        for name in held.tasks
    }
    asked = SideBySide(source, record, revision, base_model)

    def chosen(choice: str) -> Cells:
        _, task = tasks[choice]
        needs_image, needs_text = (one in task.pair.modalities for one in (Modality.IMAGE, Modality.TEXT))
        empty = [gr.update(visible=needs_image, value=None), gr.update(visible=needs_text, value="")]
        return [*empty, gr.update(value=""), *_hidden(gr)]

    def answered(choice: str, image: str | None, text: str) -> Cells:
        client, task = tasks[choice]
        try:
            found = asked.answers(client, task, image, text)
        except TapError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [cell for name in COMPARED for cell in _shown(gr, name, found.get(name))]

    def example(choice: str) -> Cells:
        client, task = tasks[choice]
        row = asked.example(client, task)
        if row is None:
            raise gr.Error("The run has kept no test rows of this task.", print_exception=False)
        image = None if row.image is None else Image.open(BytesIO(row.image))
        target = f"target: {row.target}" if isinstance(row.target, str) else ""
        return [gr.update(value=image), gr.update(value=row.text or ""), f"Test row {row.row}. {target}"]

    with gr.Blocks(title=f"{record.recipe.name} · tap_hf", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {record.recipe.name}\nWhat the sets of a client say of your input, side by side.")
        choice = gr.Dropdown(list(tasks), value=next(iter(tasks)), label="client: task", filterable=True)
        first = next(iter(tasks.values()))[1].pair.modalities
        with gr.Row():
            image = gr.Image(
                type="filepath",
                label="picture",
                height=240,
                sources=["upload", "clipboard"],
                visible=Modality.IMAGE in first,
            )
            text = gr.Textbox(label="text", lines=3, visible=Modality.TEXT in first)
        with gr.Row():
            ask = gr.Button("Ask", variant="primary")
            show = gr.Button("A test row of the client", visible=asked.has_examples)
        about = gr.Markdown()
        outputs = []
        with gr.Row():
            for name in COMPARED:
                with gr.Column(min_width=200):
                    outputs += [
                        gr.Label(label=SETS[name].title, num_top_classes=_SHOWN, visible=False),
                        gr.Textbox(label=SETS[name].title, visible=False),
                        gr.Image(
                            label=SETS[name].title, visible=False, interactive=False, height=240, buttons=["download"]
                        ),
                    ]
        choice.change(chosen, choice, [image, text, about, *outputs])
        gr.on([ask.click, text.submit], answered, [choice, image, text], outputs, api_name="ask")
        taken = show.click(example, choice, [image, text, about])
        taken.success(answered, [choice, image, text], outputs)
    return blocks


def export_space(repo_id: str, folder: Path) -> list[Path]:
    """Write a Space that shows a repository's playground, and return its files.

    Raises:
        TapError: if the folder holds such files already, or cannot be written.
    """
    import tap_hf

    title = repo_id.rpartition("/")[2]
    files = {
        "app.py": f'"""The playground of {repo_id}."""\n\nfrom tap_hf.report.playground import playground\n\n'
        f"playground({repo_id!r}).launch()\n",
        "requirements.txt": f"tap_hf[ui]=={tap_hf.__version__}\n",
        "README.md": f"---\ntitle: {title}\nsdk: gradio\nsdk_version: {_SDK}\napp_file: app.py\n"
        f"models:\n- {repo_id}\n---\n\n"
        f"Compares the adapters of [{repo_id}](https://huggingface.co/{repo_id}) on your own input, with tap_hf.\n",
    }
    if taken := [name for name in files if (folder / name).exists()]:
        raise TapError(f"{folder / taken[0]} exists. Choose another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise TapError(f"{folder} cannot be written ({error.strerror}). Choose another folder.") from error
    return [folder / name for name in files]


_SDK = "6.31.0"


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise TapError('The playground needs gradio, which is not installed: pip install "tap_hf[ui]".') from error
    return gradio


def _hidden(gr: Any) -> Cells:
    return [gr.update(visible=False, value=None) for _ in COMPARED for _ in range(3)]


def _shown(gr: Any, name: str, found: Prediction | None) -> Cells:
    """Return the updates of a set's label, text and image: the one that its prediction is."""
    values: list[Any] = [None] * 3
    if found is not None:
        values = [found.probabilities, "(nothing)" if found.text == "" else found.text, found.image]
    return [gr.update(visible=value is not None, value=value, label=SETS[name].title) for value in values]


class SideBySide:
    """Answers of the sets, one input at a time, since a client's sets share one live model."""

    def __init__(self, source: str | Path, record: RunRecord, revision: str | None, base_model: str | None) -> None:
        self._source, self._record = source, record
        self._lock = threading.Lock()

        @lru_cache(maxsize=_CLIENTS_KEPT)
        def load(client: str) -> ClientSets:
            return load_client_sets(source, client, revision=revision, base_model=base_model)

        self._load: Callable[[str], ClientSets] = load

        @cache
        def rows(client: str, task: str) -> Iterator[PredictedRow]:
            return itertools.cycle(self._rows(client, task))

        self._examples: Callable[[str, str], Iterator[PredictedRow]] = rows
        redacted = record.redacted or record.recipe.privacy.redact
        self.has_examples = not redacted and any(name.startswith("predictions/") for name in record.files)

    def answers(self, client: str, task: Task, image: str | None, text: str) -> Mapping[str, Prediction]:
        """Return what each set says, of those that have all of the task's components."""
        given = {Modality.IMAGE: image, Modality.TEXT: text.strip()}
        if missing := [one for one in task.pair.modalities if not given[one]]:
            raise TapError(f'Task "{task.name}" needs {missing[0]} as input. Give one.')
        images = [image] if image and Modality.IMAGE in task.pair.modalities else None
        texts = [text] if Modality.TEXT in task.pair.modalities else None
        found = {}
        with self._lock:
            held = self._load(client)
            components = held.model.tasks[task.name].components
            for name, values in held.sets.items():
                if components <= values.keys():
                    held.model.load(select(values, components))
                    (found[name],) = predict_all(held.model, task.name, images, texts)
        return found

    def example(self, client: str, task: Task) -> PredictedRow | None:
        """Return a test row that the run kept with its input, another one each time."""
        return next(self._examples(client, task.name), None)

    def _rows(self, client: str, task: str) -> Sequence[PredictedRow]:
        kept = read_predictions(Path(self._source), self._record, task, [client])
        both = zip(best_rows(kept, _SHOWN), worst_rows(kept, _SHOWN), strict=False)
        return [row for pair in both for row in pair if row.image or row.text]
