"""The configuration of images: where they are and how they are divided."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.fit_config import Strict

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class SplitConfig(Strict):
    """How images are divided: by hash of `image_id` into fractions, or by a column of the source."""

    train: Fraction = 0.7
    """Share of the images that weights are fitted on."""
    val: Fraction = 0.1
    """Share that lengths are chosen on."""
    test: Fraction = 0.2
    """Share that scores are reported on."""
    seed: int = 0
    """Another seed gives another split."""
    column: str | None = None
    """Column (manifest, parquet) that holds train, val or test; the shares are then not used. The `seed`
    still draws folds and samples."""

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> SplitConfig:
        total = self.train + self.val + self.test
        if self.column is None and abs(total - 1.0) > 1e-9:
            raise ValueError(f"train + val + test is {total:g}, expected 1")
        if self.column is None and min(self.train, self.val, self.test) <= 0:
            raise ValueError(
                "train, val and test must each be above 0: fit, choice and score need them"
            )
        return self


class ImagesConfig(Strict):
    """Where the images are and how they are divided."""

    path: str
    """Folder, file, glob or URL."""
    format: Literal["folder", "webdataset", "parquet", "manifest"] | None = None
    """How the path is read: `folder`, `webdataset`, `parquet` (rows with the bytes of an image) or
    `manifest`; by default guessed from what is found there."""
    label: str | None = None
    """Key (webdataset) or column (manifest, parquet) that holds the label; the folder's name for
    `folder`."""
    image: str | None = None
    """`parquet`: column that holds the images; by default the only one of bytes, or the one that is
    named `image`, `img`, `jpg`, `jpeg`, `png`, `webp` or `bytes`."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Use only the first N images in `image_id` order."""
    split: SplitConfig = SplitConfig()
    """How images are divided."""
