"""Hosted models as they are shown to whoever asks."""

from interlace.protocol.hosting import ModelView, Moment, Origin, Phase
from interlace_state.models import HostedModel, ModelState
from interlace_state.place import doing
from interlace_state.settings.models import Autoscale, ModelConfig
from interlace_state.store import State

_PHASES = {
    ModelState.COLD: Phase.EVICTED,
    ModelState.DEPLOYING: Phase.QUEUED,
    ModelState.READY: Phase.READY,
    ModelState.FAILED: Phase.FAILED,
}


def phase_of(model: HostedModel) -> Phase:
    """Where a model stands; what its replicas show goes before what the placement loop said last.

    One that failed and was asked for again is queued, as was said then: its card has the former failure for a moment.
    """
    if model.state is ModelState.FAILED and model.moment is not None and model.moment.phase is Phase.QUEUED:
        return Phase.QUEUED
    if model.state in (ModelState.FAILED, ModelState.READY) or model.moment is None:
        resting = model.moment is not None and model.moment.phase is Phase.IDLE and model.state is ModelState.READY
        return Phase.IDLE if resting else _PHASES[model.state]
    said = model.moment.phase
    if said in (Phase.READY, Phase.IDLE, Phase.FAILED):  # it was, and is not any more
        return _PHASES[model.state]
    return said


def text_of(model: HostedModel, phase: Phase) -> str:
    """What is said of where it stands."""
    if model.card.failure is not None and phase is not Phase.QUEUED:
        return model.card.failure
    return model.moment.text if model.moment is not None and model.moment.phase is phase else ""


async def model_view(state: State, hosted: HostedModel, *, history: bool = False) -> ModelView:
    card, key, moment = hosted.card, hosted.card.key, hosted.moment
    record = await state.desired.find(key)
    model = None if record is None else record.model
    rule = _rule(model)
    phase = phase_of(hosted)
    same = moment if moment is not None and moment.phase is phase else None
    return ModelView(
        model=key.repo_id,
        slug=key.slug,
        revision=key.revision,
        task=key.task,
        origin=Origin.CONFIGURED if record is None else record.origin,
        phase=phase,
        text=text_of(hosted, phase),
        since=same.at if same else None,
        bytes_done=same.bytes_done if same else None,
        bytes_total=same.bytes_total if same else None,
        dtype=card.dtype,
        quantization=model.quantization if model else None,
        replicas=len(hosted.replicas),
        wanted=hosted.wanted,
        least=rule.least,
        most=rule.most,
        gpus=model.gpus if model else 0,
        idle_seconds=model.idle_seconds if model else None,
        pin=model.pin if model else False,
        paused=hosted.paused,
        jobs=await state.queue.length(key),
        size_bytes=card.size_bytes,
        resident_bytes=hosted.resident_bytes,
        history=await state.desired.history(key) if history else [],
    )


def _rule(model: ModelConfig | None) -> Autoscale:
    if model is None:
        return Autoscale(least=1, most=1)
    return model.autoscale or Autoscale(least=model.replicas, most=model.replicas)


def sentence(moment: Moment) -> str:
    """What a model that is not ready does, for whoever waits for it."""
    does = doing(moment)
    return f"Model Deploying... {does[0].upper()}{does[1:]}." if does else "Model Deploying..."
