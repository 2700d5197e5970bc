"""The model that users hold: it predicts, and is saved, loaded and pushed as in transformers."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self, overload

from PIL.Image import Image

from tap_hf.hub_client import upload_folder
from tap_hf.models.adapted_backbone import AdaptedBackbone
from tap_hf.models.adapters import Adapters
from tap_hf.models.config import TapConfig
from tap_hf.models.prediction import Picture, Prediction, predict_all
from tap_hf.models.pretrained import config_of, load_pretrained, save_pretrained


class TapModel(AdaptedBackbone):
    """A frozen backbone, LoRA adapters per modality-task pair or shared, and a head per task.

    See `AdaptedBackbone` for its arguments.

    Example:
        >>> from tap_hf import LoraOptions, ModalityTaskPair, Task, load_backbone
        >>> pair = ModalityTaskPair.parse("text__classification")
        >>> task = Task("urgency", pair, metrics=("accuracy",), labels=("low", "high"))
        >>> model = TapModel(load_backbone("tiny"), [task], {pair.name: LoraOptions(rank=2)}, seed=41)
        >>> sorted(model.initial)
        ['head__urgency', 'text__classification']
        >>> model.save_pretrained("runs/urgency")
        >>> TapModel.from_pretrained("runs/urgency").config.tasks[0].labels
        ('low', 'high')
    """

    @property
    def config(self) -> TapConfig:
        """What the model is built from."""
        return config_of(self, self.tasks, self.initial)

    @overload
    def predict(
        self, task: str | None = None, *, image: Picture | None = None, text: str | None = None
    ) -> Prediction: ...

    @overload
    def predict(
        self, task: str | None = None, *, image: Sequence[Picture] | None = None, text: list[str] | None = None
    ) -> list[Prediction]: ...

    def predict(self, task: str | None = None, *, image: Any = None, text: Any = None) -> Prediction | list[Prediction]:
        """Return the prediction for one input, or a list of them for lists of inputs.

        Args:
            task: one of the model's tasks; not needed where a single one takes these inputs.
            image: an image or its file, or a list of them, if the task's pair has images.
            text: a text or a list of them, if the task's pair has texts.

        Raises:
            DataError: for an unknown task, a missing or superfluous input, or an unreadable image.

        Example:
            >>> model = TapModel.from_pretrained("org/clinic_a")  # doctest: +SKIP
            >>> model.predict(text="Fracture of lower end of left femur").label  # doctest: +SKIP
            >>> [one.label for one in model.predict(text=["Fracture of femur", "A cold"])]  # doctest: +SKIP
        """
        is_one = any(isinstance(value, str | Path | Image) for value in (image, text)) or image is text is None
        images, texts = (None if value is None else [value] if is_one else list(value) for value in (image, text))
        found = predict_all(self, task, images, texts)
        return found[0] if is_one else found

    def save_pretrained(
        self, save_directory: str | Path, *, tasks: Iterable[str] | None = None, adapters: Adapters | None = None
    ) -> None:
        """Write a folder that `from_pretrained` loads, and whose adapters plain PEFT loads.

        It holds `config.json`, the two files of PEFT for each adapter (in a folder of the adapter's name; an only one
        lies beside `config.json`), `heads.safetensors`, and the processor in `processor/`.

        Args:
            save_directory: the folder; it is made if it is not there.
            tasks: which tasks to save; all unless given.
            adapters: the values to save; the live ones unless given.
        """
        save_pretrained(self, Path(save_directory), self.tasks if tasks is None else tasks, adapters)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str = "",
        variant: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        base_model: str | None = None,
        **backbone_options: Any,
    ) -> Self:
        """Return a saved model: backbone, adapters, heads and label names.

        Args:
            pretrained_model_name_or_path: a folder of `save_pretrained`, such as `clients/<id>` of a run directory, or
                a repository.
            subfolder: of a folder or repository that holds several models, such as `clients/clinic_a` or `global`.
            variant: another set of a run's client, such as `stage1`; `personal` unless given.
            revision: branch, tag or commit of the repository.
            token: of the Hub; the one that `hf auth login` saved unless given.
            base_model: a folder or Hub id that holds the backbone, if it is not where the model says.
            **backbone_options: of `load_backbone`, such as `dtype` or `device_map`.

        Raises:
            TapError: if anything is missing, damaged, does not fit the backbone, or is not to be trusted.
        """
        return load_pretrained(
            cls, pretrained_model_name_or_path, subfolder, variant, revision, token, base_model, backbone_options
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload TapModel",
    ) -> str:
        """Upload what `save_pretrained` writes, in one commit; `tap-hf push` adds the model card of a run.

        Args:
            repo_id: the repository, `ORG/NAME`; it is made if it is not there.
            private: whether to make it private.
            token: of the Hub; the one that `hf auth login` saved unless given.
            revision: the branch to commit to.
            commit_message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            HubError: if the Hub refuses, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_folder(
                Path(folder), repo_id, private=private, token=token, revision=revision, message=commit_message
            )
