"""What is told of jobs to whoever may see them: one job, or a page of a list. All times are Unix seconds."""

from pydantic import BaseModel, ConfigDict, Field

from interlace.protocol.event import Progress
from interlace.protocol.job import Cost, JobState

_LONGEST_REASON = 160  # characters
_LONGEST_ADVICE = 2000  # characters
_TRACEBACK = "Traceback"


class Standing(BaseModel):
    """Where a job stands that waits."""

    model_config = ConfigDict(frozen=True)

    #: Jobs that will start before it.
    ahead: int
    #: Seconds until it starts, guessed from recent jobs of its model; None while there is nothing to guess from.
    seconds: float | None = None
    #: What it waits for beside those, such as a paused model or its tenant's limit; empty where that is nothing.
    reason: str = ""


class JobView(BaseModel):
    """A job, without what its owner sent and without what came out."""

    model_config = ConfigDict(frozen=True)

    id: str
    tenant: str
    #: The model's repo id.
    model: str
    #: The model's short name, which is unique also where two revisions of one repository are hosted.
    slug: str
    #: `NAME@VERSION` of a method's job; None for a trace.
    method: str | None = None
    state: JobState
    #: One sentence for people, or what went wrong.
    text: str = ""
    submitted: float
    #: When a worker first took it.
    started: float | None = None
    ended: float | None = None
    #: How many workers have had it and not given it back.
    attempts: int = 0
    #: How far it is, while it runs and where it says so.
    progress: Progress | None = None
    #: None unless it waits.
    place: Standing | None = None
    #: None until it has ended.
    cost: Cost | None = None
    #: Bytes of the stored result; None for a job that has none.
    result_size: int | None = None

    @property
    def reason(self) -> str:
        """Why it failed or was cancelled, in one short line; of a traceback, what was raised. Empty for other jobs.

        It is what the job's own code may have written: escape it where markup or a terminal's codes are obeyed.
        """
        if self.state not in (JobState.ERROR, JobState.CANCELLED):
            return ""
        lines = [line for line in self.text.splitlines() if line.strip()]
        last = max((at for at, line in enumerate(lines) if line.startswith(_TRACEBACK)), default=None)
        if last is not None:  # its frames are indented; what was raised is not
            lines = [line for line in lines[last + 1 :] if not line[0].isspace()] or lines[-1:]
        line = lines[0].strip() if lines else ""
        return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 1] + "…"

    @property
    def advice(self) -> str:
        """What stands below a traceback and what was raised: where in the user's code, what there is, what would help.

        Empty where there is no such thing. Like `reason`, the job's own code may have written it.
        """
        if not self.reason or (at := self.text.rfind(_TRACEBACK)) < 0:
            return ""
        said = self.text[at:].partition("\n\n")[2].strip()
        return said if len(said) <= _LONGEST_ADVICE else said[: _LONGEST_ADVICE - 1] + "…"


class JobPage(BaseModel):
    """Some jobs, the newest first."""

    model_config = ConfigDict(frozen=True)

    jobs: list[JobView]
    #: The cursor of the next page, which may follow a page that is short or empty; None: there is none.
    next: str | None = Field(default=None, description="Pass it as `cursor` for the next page; null at the end.")
