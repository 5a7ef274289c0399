"""Models on a worker, the same as where the run was planned, or not at all."""

from __future__ import annotations

from actors.clip import load_clip
from actors.recorder import ClipPart, TargetPart
from actors.targets import Target, load_target
from core.errors import RecordingError
from pipeline.plan import ClipPlan, TargetPlan
from pipeline.planning import clip_fingerprint, target_fingerprint


def planned_target(plan: TargetPlan) -> Target:
    """The network as it was planned.

    Raises:
        RecordingError: It has other weights on this machine.
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
    clip = load_clip(plan.model, base=plan.base)
    if clip_fingerprint(clip, plan.preprocess) != plan.fingerprint:
        raise RecordingError(_differs(plan.model))
    return ClipPart(clip, plan.name)


def _differs(model: str) -> str:
    return (
        f"{model!r} has other weights on this worker than where the run was planned; "
        "give every node the same files"
    )
