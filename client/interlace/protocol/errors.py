"""Every error that a user can meet.

* InterlaceError
  x InvalidRequest          422  a field of the envelope is wrong
    - InvalidModelKey       422
    - InvalidPayload        422
    - UnsendableValue       422
    - ClientTooOld          400
    - InvalidArtifact       422  a file of an artifact, or an adapter, is not what it must be
    - AdapterRefused        422  this adapter cannot be had for this model
    - NotAllowed            422  the model is not hosted, and may not come on demand
  x UnknownModel            404
  x UnknownJob              404
  x UnknownValue            404
  x UnknownReplica          404
  x UnknownArtifact         404
  x UnknownMethod           404
  x ModelFailed             503  the model could not be loaded
  x ModelComing             503  the model's files are being fetched
  x SessionRefused          409
  x NotCompleted            409  a job has no result, or none yet
  x StoreFull               503  there is no room for another job's bytes
  x IdempotencyConflict     409  the same key came with another request before
  x LimitExceeded           413  a bound was met: which, its value, how to raise it
  x TooMany                 429  a bound on how much at a time: which, its value, when to try again
  x Unauthorized            401  no API key, or none that works
  x Forbidden               403  the API key works, and is not enough for this
  x Untrusted               403  the model takes jobs of trusted tenants only
  x ShuttingDown            503
"""

from collections.abc import Sequence
from difflib import get_close_matches


class InterlaceError(Exception):
    """Something went wrong in Interlace."""

    code = "internal"
    http_status = 500
    #: Seconds after which the same request may go better; None where it will not.
    retry_after: int | None = None

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split()))


class InvalidRequest(InterlaceError):
    """The request is not one that Interlace understands."""

    code = "invalid_request"
    http_status = 422


class InvalidModelKey(InvalidRequest):
    """The model key does not name a model."""

    code = "invalid_model_key"


class InvalidPayload(InvalidRequest):
    """The payload is not a serialized nnsight trace."""

    code = "invalid_payload"


class UnsendableValue(InvalidRequest):
    """A saved value cannot be sent."""

    code = "unsendable_value"

    def __init__(self, name: str, kind: str, reason: str) -> None:
        super().__init__(
            f"`{name}` (a {kind}) was saved and cannot be sent: {reason}. Save tensors, numbers, strings, and lists, "
            "dicts and objects of these."
        )
        self.name = name


class ClientTooOld(InvalidRequest):
    """The client's nnsight or Python is older than this server can read."""

    code = "client_too_old"
    http_status = 400


class InvalidArtifact(InvalidRequest):
    """A file is not what an artifact is made of: safetensors and JSON."""

    code = "invalid_artifact"


class AdapterRefused(InvalidRequest):
    """The adapter cannot be had for this model."""

    code = "adapter_refused"


class NotAllowed(InvalidRequest):
    """The model is not hosted here, and a request may not bring it."""

    code = "not_allowed"

    def __init__(self, wanted: str, allowed: Sequence[str], hosted: Sequence[str]) -> None:
        super().__init__(
            f"This server does not host {wanted}, and it is none of those that a request may bring: "
            f"{', '.join(allowed)}. Hosted models: {', '.join(hosted) or 'none yet'}. The operator can allow it "
            "(`on_demand.allow` in the configuration) or host it (`interlace deploy REPO`)."
        )
        self.wanted = wanted
        self.allowed = tuple(allowed)


class UnknownModel(InterlaceError):
    """No such model is hosted here."""

    code = "unknown_model"
    http_status = 404

    def __init__(self, wanted: str, hosted: Sequence[str]) -> None:
        listed = ", ".join(hosted) or "none yet"
        super().__init__(
            f"This server does not host {wanted}. Hosted models: {listed}. "
            "Use one of these ids, or ask the operator to add yours (`interlace up --model ...`)."
        )
        self.wanted = wanted
        self.hosted = tuple(hosted)


class UnknownJob(InterlaceError):
    """No such job: it never was, its lifetime is over, or it is not yours."""

    code = "unknown_job"
    http_status = 404


class UnknownValue(InterlaceError):
    """The job has no such value: it never left, or its lifetime is over."""

    code = "unknown_value"
    http_status = 404

    def __init__(self, job_id: str, number: int) -> None:
        super().__init__(f"Job {job_id} has no streamed value {number}: it never left, or its lifetime is over.")


class UnknownPicture(InterlaceError):
    """The job has shown no such picture, or its lifetime is over."""

    code = "unknown_picture"
    http_status = 404

    def __init__(self, job_id: str, number: int) -> None:
        super().__init__(f"Job {job_id} has shown no picture {number}: not all come through, or its lifetime is over.")


class UnknownReplica(InterlaceError):
    """No such replica gives a sign of life."""

    code = "unknown_replica"
    http_status = 404


class UnknownArtifact(InterlaceError):
    """No such artifact: it never was, it has been deleted, or it is not yours."""

    code = "unknown_artifact"
    http_status = 404

    def __init__(self, artifact_id: str) -> None:
        super().__init__(
            f"There is no artifact {artifact_id[:96]} that is yours: it never was, or has been deleted. "
            "`interlace artifacts list` shows those that are there."
        )


class UnknownMethod(InterlaceError):
    """No such method is installed here."""

    code = "unknown_method"
    http_status = 404

    def __init__(self, wanted: str, installed: Sequence[str]) -> None:
        near = get_close_matches(wanted[:96], installed, 1, cutoff=0.75)
        meant = f"Did you mean {near[0]}? " if near else ""
        super().__init__(
            f"No method {wanted[:96]} is installed on this server. {meant}There are: {', '.join(installed) or 'none'}. "
            "`interlace methods` shows them; a package that has more is installed beside the server."
        )


class StoreFull(InterlaceError):
    """There is no room for another job's bytes."""

    code = "store_full"
    http_status = 503
    retry_after = 60

    def __init__(self, why: str) -> None:
        super().__init__(
            f"{why} Jobs that were taken in go on; try again later, when old results have gone "
            "(`lifetimes.result`), or ask the operator for room."
        )


class ModelFailed(InterlaceError):
    """The model could not be loaded."""

    code = "model_failed"
    http_status = 503

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} could not be loaded on this server: {reason}")
        self.model = model
        self.reason = reason


class ModelComing(InterlaceError):
    """The model is hosted on demand, and its configuration is being fetched. Ask again in a few seconds."""

    code = "model_coming"
    http_status = 503
    retry_after = 2


class SessionRefused(InterlaceError):
    """The session id was not given out by this server, is closed, or has a job already."""

    code = "session_refused"
    http_status = 409


class NotCompleted(InterlaceError):
    """The job has no result: it has not ended yet, or it failed."""

    code = "not_completed"
    http_status = 409


class IdempotencyConflict(InterlaceError):
    """This Idempotency-Key came before, with another request. A key stands for one request: send a new one."""

    code = "idempotency_conflict"
    http_status = 409


class LimitExceeded(InterlaceError):
    """A limit was met."""

    code = "limit_exceeded"
    http_status = 413

    def __init__(self, what: str, limit: int | float, unit: str, setting: str, advice: str = "") -> None:
        """``advice``: a sentence on what helps without the operator."""
        section, _, name = setting.partition(".")
        at_once = f", or for one tenant and at once: `interlace admin limits TENANT {name}=N`"
        super().__init__(
            f"{what} is over the limit of {limit:,} {unit}. The operator can raise it: `{setting}` in the "
            f"configuration{at_once if section == 'limits' else ''}.{advice and ' '}{advice}"
        )
        self.limit = limit
        self.setting = setting


#: What helps a tenant that has too many artifacts.
MAKE_ROOM = "Or make room: `interlace artifacts list` shows yours, `interlace artifacts delete` deletes one."


class TooMany(LimitExceeded):
    """Too much at a time."""

    code = "too_many"
    http_status = 429

    def __init__(self, what: str, limit: int | float, unit: str, setting: str, retry_after: int) -> None:
        super().__init__(what, limit, unit, setting)
        #: Seconds.
        self.retry_after = retry_after


class Unauthorized(InterlaceError):
    """This server asks for an API key, and the request has none that works. Set it with
    `nnsight.CONFIG.set_default_api_key("...")` or NDIF_API_KEY; the operator gives one out with
    `interlace keys create --tenant NAME`."""

    code = "unauthorized"
    http_status = 401


class Forbidden(InterlaceError):
    """This is for operators. It needs a key with the role `admin`:
    `interlace keys create --tenant NAME --role admin`."""

    code = "forbidden"
    http_status = 403


class Untrusted(InterlaceError):
    """A model's jobs run unprotected, and only for tenants that its operator trusts."""

    code = "untrusted"
    http_status = 403

    def __init__(self, key: str, tenant: str) -> None:
        super().__init__(
            f"{key} runs jobs unprotected, for tenants that its operator trusts; yours ({tenant}) is not one of them. "
            "The operator can add it: `models[].trusted`."
        )


class ShuttingDown(InterlaceError):
    """The server is shutting down and takes no new jobs. Please try again in a minute."""

    code = "shutting_down"
    http_status = 503
