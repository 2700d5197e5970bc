"""`TapModel`: predictions, and saving, loading and pushing as in transformers."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self, overload

from tap_hf.atomic_files import write_atomically
from tap_hf.errors import AdapterError, BackboneError, DataError
from tap_hf.hub_client import upload_folder
from tap_hf.models.adapted_backbone import AdaptedBackbone
from tap_hf.models.adapters import Adapters, check_matches, save_adapters, select
from tap_hf.models.config import CONFIG_FILE, TapConfig
from tap_hf.models.model_card import CARD_FILE, model_card
from tap_hf.models.peft_folder import save_adapter
from tap_hf.models.prediction import Picture, Prediction, predict_all
from tap_hf.models.pretrained import (
    HEADS_FILE,
    PROCESSOR_FOLDER,
    check_adapter_configs,
    check_sizes,
    config_of,
    model_files,
    open_backbone_of,
    read_config,
    read_values,
    read_variant,
)


class TapModel(AdaptedBackbone):
    """A frozen backbone, LoRA adapters per modality-task pair or shared, and a head per task.

    See `AdaptedBackbone` for its arguments.

    Examples:
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
        """The parts of the model."""
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
            task: one of the model's tasks; optional if only one takes these inputs.
            image: an image or its file, or a list of them, if the task's pair has images.
            text: a text or a list of them, if the task's pair has texts.

        Raises:
            DataError: for an unknown task, a missing or unexpected input, or an unreadable image.

        Examples:
            >>> model = TapModel.from_pretrained("org/clinic_a")  # doctest: +SKIP
            >>> model.predict(text="Fracture of lower end of left femur").label  # doctest: +SKIP
            >>> [one.label for one in model.predict(text=["Fracture of femur", "A cold"])]  # doctest: +SKIP
        """
        is_one = not any(isinstance(value, Iterable) and not isinstance(value, str) for value in (image, text))
        images, texts = (None if value is None else [value] if is_one else list(value) for value in (image, text))
        found = predict_all(self, task, images, texts)
        return found[0] if is_one else found

    def save_pretrained(
        self, save_directory: str | Path, *, tasks: Iterable[str] | None = None, adapters: Adapters | None = None
    ) -> None:
        """Write a folder that `from_pretrained` loads, and whose adapters plain PEFT loads.

        It holds `config.json`, each adapter as PEFT saves it (in a folder with the adapter's name; an only one is
        beside `config.json`), `heads.safetensors`, and the processor in `processor/`.

        Args:
            save_directory: the folder; created if missing.
            tasks: the tasks to save; by default all.
            adapters: the values to save; by default the live ones.

        Raises:
            DataError: for an unknown task, or none at all.
            AdapterError: if the set lacks a component, or the folder cannot be written.
        """
        folder, names = Path(save_directory), list(self.tasks if tasks is None else tasks)
        if not names:
            raise DataError(f"got no tasks to save; expected some of {', '.join(self.tasks)}")
        components = self.components_of(names)
        values = self.dump(components) if adapters is None else select(adapters, components)
        if missing := sorted(components - values.keys()):
            raise AdapterError(f"the set to save lacks {', '.join(missing)}; expected all that {', '.join(names)} use")
        config = config_of(self, names, values)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Without its config a folder is not a model, so a partly written one is never loaded.
            (folder / CONFIG_FILE).unlink(missing_ok=True)
            for name, place in config.adapters.items():
                save_adapter(self, name, values, config.backbone, folder / place)
            if heads := {name: values[name] for name in sorted(components - self.lora.keys())}:
                save_adapters(folder / HEADS_FILE, heads)
            self.backbone.processor.save_pretrained(folder / PROCESSOR_FOLDER)
            write_atomically(folder / CONFIG_FILE, config.to_json_string().encode())
        except (FileExistsError, NotADirectoryError, PermissionError) as error:  # a full disk is another matter
            where = f"{error.filename}: " if error.filename else ""
            raise AdapterError(
                f"{folder} cannot be written ({where}{error.strerror}). Save to another folder."
            ) from error

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
            subfolder: a model in a folder or repository with several, such as `clients/clinic_a` or `global`.
            variant: a set of a run's client other than `personal`, such as `stage1`.
            revision: branch, tag or commit of the repository.
            token: Hub token; by default the one that `hf auth login` saved.
            base_model: folder or Hub id of the backbone, if it is not the one in the model's config.
            **backbone_options: of `load_backbone`, such as `dtype` or `device_map`.

        Raises:
            TapError: if anything is missing, damaged or unsafe, or does not fit the backbone.
            ValueError: for an unknown option.
        """
        files = model_files(pretrained_model_name_or_path, subfolder, revision, token)
        config = read_config(files)
        values = read_values(files, config)
        if variant is not None:
            values = read_variant(files, variant)
        check_sizes(files, config, values)
        backbone = open_backbone_of(files, config, base_model, backbone_options)
        try:
            model = cls(backbone, config.tasks, config.lora, seed=0, shared=config.shared, frozen_a=config.frozen_a)
            if missing := sorted(model.initial.keys() - values.keys()):
                raise AdapterError(f"it lacks {', '.join(missing)}.")
            check_matches(values, model.initial, "it")
            model.load(values)
        except (AdapterError, BackboneError) as error:
            base = backbone.source if base_model else config.backbone
            raise AdapterError(
                f"{files.source} does not fit {base}: {error} It was saved from {config.backbone}; use that as "
                "base_model."
            ) from error
        check_adapter_configs(files, config, model)
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload TapModel",
    ) -> str:
        """Upload the files of `save_pretrained` in one commit, and return its URL.

        A short model card goes with them, unless the repository has one; `tap-hf push` writes a full one of a run.

        Args:
            repo_id: the repository, `ORG/NAME`; created if missing.
            private: whether to make it private.
            token: Hub token; by default the one that `hf auth login` saved.
            revision: the branch to commit to.
            commit_message: of the commit.

        Raises:
            HubError: if the Hub refuses or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            Path(folder, CARD_FILE).write_text(model_card(self.config, repo_id), encoding="utf-8")
            return upload_folder(
                Path(folder),
                repo_id,
                private=private,
                token=token,
                revision=revision,
                message=commit_message,
                kept=CARD_FILE,
            )
