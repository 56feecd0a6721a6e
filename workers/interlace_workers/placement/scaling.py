"""How many replicas of a model shall run: one rule, whichever runtime hosts them."""

import math
from dataclasses import dataclass, replace

from interlace_state.settings.models import Autoscale, ModelConfig


@dataclass(frozen=True)
class Scale:
    """How many replicas shall run, and what speaks for fewer."""

    replicas: int
    #: Since when fewer have been enough, by the clock of whoever asks; None while they are not.
    fewer_since: float | None = None
    #: The most that were needed since then.
    needed: int = 0


def scaled(settings: Autoscale, former: Scale, jobs: int, now: float) -> Scale:
    """The scale after a look at ``now`` (seconds) that found so many ``jobs`` waiting or running.

    Up at once; down when fewer have been enough for ``idle_seconds``, to the most that were needed in these, but at
    once to what may run at most, which an operator may have changed.
    """
    needed = min(settings.most, max(settings.least, math.ceil(jobs / settings.jobs_per_replica)))
    former = replace(former, replicas=min(former.replicas, settings.most))
    if needed >= former.replicas:
        return Scale(needed)
    if former.fewer_since is None:
        former = Scale(former.replicas, now, needed)
    assert former.fewer_since is not None
    most = max(former.needed, needed)
    if now - former.fewer_since >= settings.idle_seconds:
        return Scale(most)
    return Scale(former.replicas, former.fewer_since, most)


def rule(model: ModelConfig) -> Autoscale:
    """How many replicas of a model run, in the one form that there is for it; of one that is pinned, never none."""
    settings = model.autoscale or Autoscale(least=model.replicas, most=model.replicas)
    return settings.model_copy(update={"least": 1}) if model.pin and not settings.least else settings
