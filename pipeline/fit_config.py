"""The section `fit` of the configuration: how explanations are searched for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """A section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


#: What `fit.preset: paper` stands for.
PAPER: dict[str, Any] = {
    "search": "paper",
    "max_length": 10,
    "tolerance": 0.02,
    "length": "tolerance",
    "sharpness": "native",
    "ridge": 0.0,
    "refit": "train",
}


class SharpnessConfig(Strict):
    """Concept score = sigmoid(factor · logit + shift), the logit by the model's own calibration."""

    factor: Annotated[float, Field(gt=0, le=100)]
    """What logits are multiplied by: below 1 scores are softer, above 1 sharper."""
    shift: Annotated[float, Field(ge=-100, le=100)] = 0.0
    """What is added then: above 0 all scores are higher."""


class FitConfig(Strict):
    """How explanations are searched for."""

    search: Literal["forward", "beam", "elastic-net-top-k", "single", "paper"] = "forward"
    """`forward` adds the best of all active concepts at each step; `beam` keeps several sets at each
    step; `elastic-net-top-k` takes the largest weights of one elastic net; `single` the one best
    concept; `paper` is the published search."""
    max_length: Annotated[int, Field(ge=1, le=100)] = 10
    """Most concepts of an explanation; every length up to it is kept."""
    sign: Literal["any", "positive"] = "any"
    """Signs of the weights: `positive` leaves out concepts that inhibit."""
    ridge: Annotated[float, Field(ge=0, le=10)] = 0.1
    """`forward`: ridge penalty of the choice, in variances of a concept score; weights have none."""
    sharpness: (
        Literal["auto", "native"] | Annotated[float, Field(gt=0, le=100)] | SharpnessConfig
    ) = "auto"
    """`open_clip`: factor on the logits of concept scores, or `{factor: …, shift: …}`; `auto` chooses
    both for each layer on validation images, `native` is 1 without a shift."""
    length: Literal["tolerance", "one-standard-error", "cross-validation"] = "tolerance"
    """How the length is chosen: the shortest explanation within `tolerance`, or within one standard
    error, of the best on validation images; or within one standard error over the folds."""
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Validation correlation that may be given up for a shorter explanation."""
    folds: Annotated[int, Field(ge=0, le=20)] = 5
    """Folds of the training images, for cross-validation and stability; 0 for neither."""
    refit: Literal["train", "train+val"] = "train+val"
    """Images that the final weights are fitted on, once concepts are chosen."""
    max_concepts: Annotated[int, Field(ge=1)] = 20_000
    """Most active concepts of an explainer; of more, those nearest to some neuron are kept."""
    device: Literal["cpu", "gpu"] = "cpu"
    """`gpu`: `forward` selects concepts on GPUs, thousands of neurons at a time, which pays from some
    hundred thousands of neurons on. Where two concepts explain equally much up to rounding it may
    take the other one. All else of the fit is computed on processors."""
    preset: Literal["paper"] | None = None
    """`paper`: the published elastic net, greedy search and calibration, with their settings."""

    @model_validator(mode="after")
    def _preset_is_whole(self) -> FitConfig:
        if self.preset == "paper":
            for key, value in PAPER.items():
                if key in self.model_fields_set and getattr(self, key) != value:
                    raise ValueError(
                        f"preset 'paper' sets {key} to {value!r}; drop {key} or preset"
                    )
        return self

    @model_validator(mode="after")
    def _keys_fit_together(self) -> FitConfig:
        if self.folds == 1:
            raise ValueError("one fold leaves nothing to fit on; use 0 or at least 2 folds")
        if self.length == "cross-validation" and not self.folds:
            raise ValueError("length 'cross-validation' needs folds; leave the key out for 5")
        if self.search == "paper" and self.length != "tolerance":
            raise ValueError("the published search stops at the length it chooses; drop length")
        if self.sign == "positive" and "paper" in (self.search, self.preset):
            raise ValueError("the published search has weights of any sign; drop sign or paper")
        if self.device == "gpu" and (self.resolved.search != "forward" or self.sign != "any"):
            raise ValueError(
                "on a GPU there is the search 'forward' with weights of any sign alone; drop device"
            )
        return self

    @property
    def resolved(self) -> FitConfig:
        """The same with the preset written out."""
        if self.preset is None:
            return self
        return self.model_copy(update=PAPER | {"preset": None})
