"""The configuration of explainers and simulators: where concept scores come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.fit_config import Strict

#: The simulator that stands for the explainer's own concept scores (a fit check, not a simulation).
OWN_SCORE = "explainer"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]


class Calibration(Strict):
    """Concept score = sigmoid(a · (cosine + b))."""

    a: Annotated[float, Field(gt=0)]
    """Slope."""
    b: float
    """Shift, in units of the cosine."""


class ConceptsConfig(Strict):
    """One explainer: a source of concept scores for every image."""

    name: Name
    """What the explainer is called in tables and on pages."""
    kind: Literal["labels", "attributes", "open_clip", "table"]
    """`labels` (with superclasses), `attributes` (columns beside the images), `open_clip` or `table`."""
    hierarchy: str | None = None
    """`labels`: JSON file with classes and superclasses; `calibration: labels` takes the texts of labels
    from it."""
    columns: list[str] | None = None
    """`attributes`: columns of the manifest or Parquet files; by default every boolean one.
    `table`: its columns that are concepts; by default all but `image_id`."""
    path: str | None = None
    """`table`: Parquet with `image_id` and one numeric column per concept."""
    model: str | None = None
    """`open_clip`: `local-dir:PATH`, `hf-hub:NAME`, `NAME/TAG`."""
    concepts: str | Annotated[list[str], Field(min_length=1)] | None = None
    """`open_clip`: text file with one concept a line, or `imagenet1k`, `torchvision:WEIGHTS.NAME`,
    `words:20000`, `wordnet:nouns`, `wordnet:superclasses`, `hierarchy:FILE`; or a list of these, whose
    concepts count once each, in the order of the lists."""
    calibration: Literal["auto", "own", "labels"] | Calibration = "auto"
    """`open_clip`: `auto` is the published one, else the model's own; `own` is the model's own; `labels`
    is measured on the labels of training images; or `{a: …, b: …}`. The published one is known by
    `NAME/TAG` or the hub id that open_clip lists for it; a `local-dir:` of the same weights has its own."""

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> ConceptsConfig:
        allowed = {
            "labels": {"hierarchy"},
            "attributes": {"columns"},
            "open_clip": {"model", "concepts", "calibration"}
            | ({"hierarchy"} if self.calibration == "labels" else set()),
            "table": {"path", "columns"},
        }[self.kind]
        given = {
            key
            for key, field in type(self).model_fields.items()
            if key not in ("name", "kind") and getattr(self, key) != field.default
        }
        if wrong := sorted(given - allowed):
            raise ValueError(
                f"kind {self.kind!r} does not take {', '.join(wrong)}; it takes {', '.join(sorted(allowed))}"
            )
        needed = {"open_clip": ("model", "concepts"), "table": ("path",)}.get(self.kind, ())
        if missing := [key for key in needed if getattr(self, key) is None]:
            raise ValueError(f"kind {self.kind!r} needs {', '.join(missing)}")
        return self


class SimulatorConfig(Strict):
    """Another vision-language model, which predicts the neurons on test images."""

    name: Name
    """What the simulator is called; not `explainer`."""
    model: str
    """`local-dir:PATH`, `hf-hub:NAME` or `NAME/TAG`."""
    calibration: Literal["auto", "own", "labels"] | Calibration = "auto"
    """As for explainers."""
    hierarchy: str | None = None
    """`calibration: labels`: JSON file with the texts of labels."""

    @field_validator("name")
    @classmethod
    def _name_is_not_reserved(cls, value: str) -> str:
        if value == OWN_SCORE:
            raise ValueError(f"{OWN_SCORE!r} is the explainer's own score; choose another name")
        return value
