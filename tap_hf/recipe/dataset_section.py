"""The `datasets` section."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from tap_hf.errors import HubError
from tap_hf.recipe.section import Section, check
from tap_hf.recipe.split_slices import slice_problem
from tap_hf.recipe.values import NameOrNames

_TABLES = ("csv", "json", "parquet")
_LOCAL = (*_TABLES, "imagefolder", "disk", "idx", "python", "memory")
# Always read whole, or in memory.
_NO_STREAM = ("digits", "easy_vqa", "icd10cm", "disk", "idx", "python", "memory")


class DatasetSection(Section):
    """Where rows come from."""

    source: str = Field(
        description="digits, easy_vqa, icd10cm (shipped by packages), csv, json, parquet, imagefolder, disk, idx, "
        "python, memory, or a Hub dataset id"
    )
    path: str | None = Field(
        None,
        description="file or folder of csv, json, parquet, imagefolder, disk and idx, or a table's hub:// reference; "
        "for python, file.py:function",
    )
    image_folder: str | None = Field(
        None,
        description="where the image files lie that rows name; null: in the folder of the path, as others are refused",
    )
    config: NameOrNames | None = Field(
        None, description="configuration of a Hub dataset, or several that are concatenated"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hub dataset")
    encoding: str | None = Field(None, description="of csv and json files, such as cp1252; UTF-8 unless given")
    splits: dict[Literal["train", "validation", "test"], Annotated[str, check(slice_problem)]] = Field(
        {}, description="the dataset's own split of each, or a slice such as validation[:17000] or train[10%:20%]"
    )
    shuffle: Annotated[int, Field(ge=0)] | Literal[True] | None = Field(
        None, description="a seed, or true to derive it from the recipe's; shuffles each split before slicing"
    )
    stream: PositiveInt | None = Field(
        None, description="read only this many rows of each split, instead of downloading or converting all"
    )

    def own_problems(self) -> Iterator[str]:
        """Yield keys that the source does not use."""
        if self.stream is not None and self.source in _NO_STREAM:
            yield f"stream: the source {self.source} cannot be streamed, leave it out"
        if self.path is not None and self.path.startswith("hub://"):
            yield from (f"path: {problem}" for problem in self._reference_problems(self.path))
        if self.path is not None and self.source == "memory":
            yield "path: a dataset in memory has none; give it to run(recipe, datasets={...})"
        if self.path is not None and self.source not in _LOCAL:
            yield (
                f"path: got {self.path}, but the source {self.source} does not use it. Files need one of the sources "
                f"{', '.join(_LOCAL[:-1])}"
            )
        if self.image_folder is not None and self.source not in (*_TABLES, "disk"):
            yield f"image_folder: only rows of {', '.join(_TABLES)} and disk name files, {self.source} does not use it"
        if self.encoding is not None and self.source not in ("csv", "json"):
            yield f"encoding: only csv and json files have one, the source {self.source} does not use it"
        for key in ("config", "revision"):
            if getattr(self, key) is not None and self.source in _LOCAL:
                yield f"{key}: only datasets of the Hub have one, the source {self.source} does not use it"

    def _reference_problems(self, reference: str) -> Iterator[str]:
        # Late: only such references import huggingface_hub.
        from tap_hf.recipe.hub_reference import parse_reference

        if self.source not in _TABLES:
            yield f"hub:// names a single file, expected one of the sources {', '.join(_TABLES)}, got {self.source}"
        try:
            parse_reference(reference)
        except HubError as error:
            yield str(error)
