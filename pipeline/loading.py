"""Models on a worker, the same as where the run was planned, or not at all."""

from __future__ import annotations

from actors.clip import Clip, load_clip
from actors.recorder import ClipPart, TargetPart
from actors.targets import Target, load_target
from core.errors import RecordingError
from pipeline.plan import ClipPlan, TargetPlan
from pipeline.planning import clip_fingerprint, target_fingerprint, text_fingerprint


def planned_target(plan: TargetPlan) -> Target:
    """The network as it was planned.

    Raises:
        RecordingError: It has other weights, settings or code on this machine.
    """
    target = load_target(plan.model, plan.weights, base=plan.base)
    if target_fingerprint(target, plan.preprocess) != plan.fingerprint:
        raise RecordingError(_differs(plan.model))
    return target


def target_part(plan: TargetPlan) -> TargetPart:
    """The network as it was planned, with its layers and directions.

    Raises:
        RecordingError: It, or a file of directions, is another on this machine.
    """
    directions = [some.load() for some in plan.directions.values()]
    return TargetPart(planned_target(plan), plan.own_layers, directions)


def clip_part(plan: ClipPlan) -> ClipPart:
    """The vision-language model as it was planned.

    Raises:
        RecordingError: It has other weights on this machine.
    """
    return ClipPart(_planned_clip(plan), plan.name)


def text_model(plan: ClipPlan) -> Clip:
    """The vision-language model as it was planned, reading texts as it did there.

    Raises:
        RecordingError: It has other weights or another tokenizer on this machine.
    """
    clip = _planned_clip(plan)
    if text_fingerprint(clip, plan.fingerprint) != plan.text_fingerprint:
        raise RecordingError(
            f"{plan.model!r} reads texts otherwise on this worker than where the run was planned; "
            "give every node the same files of its tokenizer"
        )
    return clip


def _planned_clip(plan: ClipPlan) -> Clip:
    clip = load_clip(plan.model, base=plan.base)
    if clip_fingerprint(clip, plan.preprocess) != plan.fingerprint:
        raise RecordingError(_differs(plan.model))
    return clip


def _differs(model: str) -> str:
    return (
        f"{model!r} has other weights, settings or code on this worker than where the run was planned; "
        "give every node the same files and libraries, and see that a factory makes the same network "
        "each time"
    )
