"""Where a waiting job stands, and why it may wait although its turn has come."""

from dataclasses import dataclass

from interlace.protocol.hosting import Moment, Phase


@dataclass(frozen=True)
class Place:
    """Where a waiting job stands."""

    #: Jobs that will start before it, by what each tenant has used so far.
    ahead: int
    #: Until it starts, if the jobs before it take what jobs of its model usually do; None while nothing is known.
    seconds: float | None
    #: What it waits for beside those before it, as a part of a sentence; empty where that is nothing.
    reason: str = ""

    @property
    def sentence(self) -> str:
        """Where the job stands, for people."""
        parts = ["Next in the queue" if self.ahead == 0 else f"Position {self.ahead + 1} in the queue"]
        if self.seconds is not None:
            parts.append(f"it should start in about {_rough(self.seconds)}")
        if self.reason:
            parts.append(self.reason)
        return f"{'; '.join(parts)}."


def reason(why: str, detail: str) -> str:
    """In words what `place.lua` has found: of a limit the jobs that run, of a model its moment as JSON."""
    if why == "limit":
        return f"its tenant has {detail} running, on all models together, and may have no more (`limits.running_jobs`)"
    if why == "model":
        return doing(Moment.model_validate_json(detail))
    words = {
        "paused": "the model is paused by its operator",
        "drained": "an operator has drained the model's replicas, which take no more jobs",
    }
    return words.get(why, "")


def doing(moment: Moment) -> str:
    """What a model does that no replica has ready, as a part of a sentence; empty where that is nothing."""
    if moment.phase is Phase.DOWNLOADING and moment.bytes_total:
        done, total = (moment.bytes_done or 0) / 1e6, moment.bytes_total / 1e6
        return f"the model is downloaded: {done:,.0f} of {total:,.0f} MB are here"
    words = {
        Phase.QUEUED: "the model waits to be loaded",
        Phase.DOWNLOADING: "the model is downloaded",
        Phase.LOADING: "the model's weights are loaded",
        Phase.EVICTED: "the model is about to be loaded",
    }
    text = moment.text.strip().removesuffix(".") if moment.phase is Phase.QUEUED else ""
    return ": ".join(filter(None, (words.get(moment.phase, ""), text)))


def _rough(seconds: float) -> str:
    """A time as exact as a guess may be."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
