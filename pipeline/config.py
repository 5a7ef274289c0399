"""The configuration: one YAML file, strict and typed, every error reported at once.

Paths are relative to the file that names them. Unknown keys are errors that offer the closest known
key. `load_config` returns a `Config` whose paths are absolute; nothing is opened or loaded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from core.errors import ConfigError, close_names
from pipeline.ablation_config import PREDICTED, AblationConfig
from pipeline.concept_lists import HIERARCHY, is_file
from pipeline.concepts_config import ConceptsConfig, SimulatorConfig
from pipeline.fit_config import FitConfig, Strict
from pipeline.images_config import Fraction, ImagesConfig
from pipeline.settings import with_settings
from pipeline.target_config import TargetConfig
from pipeline.urls import refuse_secrets


class RecordingsConfig(Strict):
    """How recordings are cut and when bad images stop the run."""

    shard_size: Annotated[int, Field(ge=1, le=65536)] = 256
    """Images per shard: the unit of work, of commit and of resumption."""
    compile: bool = False
    """Compile the models' passes (torch.compile), which takes a minute or two for each model and
    recording actor. Passes alone are 1.3 to 1.8 times as fast on an H100, whole recording has not been
    measured there; on two CPU cores it was slower."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Where JPEG files are decoded: by tasks on processors, or by recording actors on their GPUs, where
    processors are too few for a fast GPU. Pixels then differ a little. Files of other kinds, turned or
    damaged ones, those beyond 1 MiB, and all files for models whose preprocessing is not just resizing
    and cropping, are decoded on processors all the same."""
    max_quarantined: Fraction = 0.05
    """Stop (exit code 4) when more than this share of the images cannot be used."""
    keep: Literal["all", "test"] = "all"
    """Images whose activations and embeddings are kept: `all`, or those of the `test` split. With
    `test` moments are taken while images are recorded, so that new layers, new concepts, another
    sharpness or number of folds record all images again; which concepts of a vision-language model
    are active is then judged on the sample that the sharpness is chosen with."""


class SimulateConfig(Strict):
    """How explanations are scored."""

    metrics: list[Literal["correlation", "cosine", "auprc", "f1", "iou"]] = ["correlation"]
    """What chosen explanations are measured by; `correlation` always is, at every length."""
    top: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """`auprc`, `f1`, `iou`: share of the images on which a neuron counts as on."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the confidence intervals."""
    baselines: list[Literal["clip-dissect", "single"]] = []
    """Simpler explanations, made from the same recordings and compared with the linear ones."""


class AtlasConfig(Strict):
    """The page that people look at."""

    images: bool = True
    """Show images; `false` writes none of them into the atlas."""
    heat_maps: bool = True
    """Show where in them the neurons of convolutional layers are active; this runs the target once more,
    over the images that are shown. Without images there are none."""


class RayConfig(Strict):
    """Where the work is done."""

    address: str | None = None
    """Address of a cluster (`auto`, `ray://…`); by default a Ray of this machine's own."""
    actors: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Recording actors; by default one per GPU share, or one on a machine without a GPU."""
    gpus_per_actor: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """GPUs for each recording actor, fractions too; by default 1 where the cluster has a GPU."""


class Config(Strict):
    """One run of neuroscribe."""

    images: ImagesConfig
    target: TargetConfig
    concepts: Annotated[list[ConceptsConfig], Field(min_length=1)]
    simulators: list[SimulatorConfig] = []
    recordings: RecordingsConfig = RecordingsConfig()
    fit: FitConfig = FitConfig()
    simulate: SimulateConfig = SimulateConfig()
    ablation: AblationConfig | None = None
    atlas: AtlasConfig = AtlasConfig()
    ray: RayConfig = RayConfig()
    store: str | None = None
    """Path or URL of a store that runs share: images, embeddings, concept scores and moments are kept
    there by content, so that another network on the same images costs its own forward pass alone."""
    _base: Path = PrivateAttr(default_factory=Path.cwd)

    @property
    def base(self) -> Path:
        """Folder that relative paths were taken from; `python:` targets are looked up there too."""
        return self._base

    @model_validator(mode="after")
    def _names_are_unique(self) -> Config:
        names = [c.name for c in self.concepts] + [s.name for s in self.simulators]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"explainers and simulators need names of their own; used twice: {', '.join(twice)}"
            )
        return self


def load_config(path: str | Path, settings: Sequence[str] = ()) -> Config:
    """Read a YAML configuration; paths in it become absolute.

    Args:
        path: The file.
        settings: Keys to set beside those of the file, as `pipeline.settings` says; relative paths
            in them are taken from the file's folder too.

    Raises:
        ConfigError: The file is missing, is not YAML, or has errors, which are listed together.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"configuration {str(path)!r} cannot be read: {error}. "
            "Give the path of a YAML file; examples/ has some to start from."
        ) from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration {str(path)!r} is not YAML: {error}") from error
    if isinstance(data, dict):
        data = with_settings(data, settings)
    return parse_config(data, base=path.resolve().parent, source=str(path))


def parse_config(data: Any, base: Path, source: str = "configuration") -> Config:
    """Check a YAML-shaped mapping; relative paths are taken from `base`.

    Raises:
        ConfigError: Every error found, each with its key path.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: found {type(data).__name__}, expected a mapping of sections")
    refuse_secrets(data)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        lines = "\n".join(
            f"  {line}" for line in dict.fromkeys(_explain(e) for e in error.errors())
        )
        raise ConfigError(f"{source} has errors; nothing was started:\n{lines}") from None
    config = _with_absolute_paths(config, base)
    config._base = base
    return config


def _explain(error: Any) -> str:
    """One validation error as a line: key path, what was found, what was expected."""
    keys = [str(part) for part in error["loc"] if not _is_union_tag(part)]
    where = ".".join(keys) or "configuration"
    if error["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        hint = close_names(keys[-1], known) or f"; known keys: {', '.join(sorted(known))}"
        return f"{where}: unknown key{hint}"
    if error["type"] == "missing":
        return f"{where}: missing, and it has no default"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("value_error",):
        return f"{where}: {message}"
    return f"{where}: found {error['input']!r}: {message[0].lower()}{message[1:]}"


def _is_union_tag(part: str | int) -> bool:
    """Whether pydantic put this into a location to say which member of a union it tried."""
    tags = ("constrained-", "literal[", "list[", "dict[", "function-", "Calibration")
    return isinstance(part, str) and (part == "str" or part.startswith(tags))


def _known_keys(path: list[str]) -> list[str]:
    """Keys of the section that a key path leads to."""
    model: type[BaseModel] = Config
    for key in path:
        if key.isdigit() or key not in model.model_fields:
            continue
        for candidate in _models_in(model.model_fields[key].annotation):
            model = candidate
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _with_absolute_paths(config: Config, base: Path) -> Config:
    """The same configuration with every relative path resolved against `base`."""

    def absolute(path: str | None) -> str | None:
        if path is None or "://" in path or Path(path).is_absolute():
            return path
        return str((base / path).resolve())

    def model(name: str | None) -> str | None:
        prefix = "local-dir:"
        if name is None or not name.startswith(prefix):
            return name
        return f"{prefix}{absolute(name.removeprefix(prefix))}"

    def weights(value: str) -> str:
        if value == "default" or value.startswith(("random:", "pypi:")):
            return value
        return absolute(value) or value

    def concepts(value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list):
            return [text for one in value if isinstance(text := concepts(one), str)]
        if value is not None and value.startswith(HIERARCHY):
            return f"{HIERARCHY}{absolute(value.removeprefix(HIERARCHY))}"
        return absolute(value) if value is not None and is_file(value) else value

    def classes(value: str) -> str:
        return value if value == PREDICTED else absolute(value) or value

    return config.model_copy(
        update={
            "store": absolute(config.store.rstrip("/")) if config.store else None,
            "images": config.images.model_copy(update={"path": absolute(config.images.path)}),
            "target": config.target.model_copy(
                update={
                    "weights": weights(config.target.weights),
                    "directions": [
                        some.model_copy(update={"path": absolute(some.path)})
                        for some in config.target.directions
                    ],
                }
            ),
            "concepts": [
                c.model_copy(
                    update={
                        "hierarchy": absolute(c.hierarchy),
                        "path": absolute(c.path),
                        "concepts": concepts(c.concepts),
                        "model": model(c.model),
                    }
                )
                for c in config.concepts
            ],
            "simulators": [
                s.model_copy(update={"model": model(s.model), "hierarchy": absolute(s.hierarchy)})
                for s in config.simulators
            ],
            "ablation": config.ablation
            and config.ablation.model_copy(update={"classes": classes(config.ablation.classes)}),
        }
    )
