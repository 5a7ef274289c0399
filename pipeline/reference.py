"""The page of the configuration, written from its types.

python -m pipeline.reference > docs/configuration.md
"""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipeline.concepts_config import Calibration
from pipeline.config import Config
from pipeline.fit_config import SharpnessConfig
from pipeline.images_config import SplitConfig
from pipeline.target_config import DirectionsConfig

HEAD = """# Configuration

<!-- Written from the types by `python -m pipeline.reference > docs/configuration.md`. -->

One YAML file. Paths are relative to it. Unknown keys are errors. `run.yaml` in a run directory shows
every key with the value that was used.
"""

#: Sections that lie inside others, after which section they are shown, and under what title.
INSIDE: dict[str, tuple[str, type[BaseModel]]] = {
    "images": ("images.split", SplitConfig),
    "target": ("target.directions (a list)", DirectionsConfig),
    "concepts": ("concepts.calibration, simulators.calibration", Calibration),
    "fit": ("fit.sharpness", SharpnessConfig),
}


def configuration_page() -> str:
    """The whole page, as Markdown."""
    parts = [HEAD]
    for name, field in Config.model_fields.items():
        inside = get_args(field.annotation)
        models = models_in(field.annotation)
        if not models:
            about = " ".join((field.description or "").split())
            parts.append(f"## {name}\n\n{about} By default {_default(field)}.\n")
        for model in models:
            listed = any(get_origin(part) is list for part in (field.annotation, *inside))
            parts.append(_section(f"{name} (a list)" if listed else name, model))
            if name in INSIDE:
                parts.append(_section(*INSIDE[name]))
    return "\n".join(parts)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The section that a key of the configuration holds, if it holds one."""
    found = [annotation, *get_args(annotation)]
    found += [inner for part in found for inner in get_args(part)]
    models = [m for m in found if isinstance(m, type) and issubclass(m, BaseModel)]
    return list(dict.fromkeys(models))


def _section(title: str, model: type[BaseModel]) -> str:
    rows = []
    for key, field in model.model_fields.items():
        text = " ".join((field.description or "").split())
        rows.append(f"| `{key}` | {_default(field)} | {text} |")
    about = " ".join((model.__doc__ or "").split())
    return "\n".join([f"## {title}\n\n{about}\n\n| key | default | |\n|---|---|---|", *rows, ""])


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if field.is_required() or value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "see below"
    return (
        f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"
    )


if __name__ == "__main__":
    print(configuration_page(), end="")
