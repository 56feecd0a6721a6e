"""Run one serialized nnsight trace: read it, execute it, collect what it saved."""

import os
import pickle
import weakref
from typing import Any, BinaryIO

import cloudpickle
import nnsight
import zstandard
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.serialization import UnknownPersistentIdError
from nnsight.modeling.mixins.remotable import Remotable
from nnsight.schema.request import RequestModel
from nnsight.tracing import tracer as tracing

from interlace.protocol.errors import InvalidPayload, LimitExceeded
from interlace_workers.child.loading.model import HostedModel, Persistent
from interlace_workers.order import Order

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_NNSIGHT = os.path.dirname(nnsight.__file__)
_CLOUDPICKLE = os.path.dirname(cloudpickle.__file__)
_CHUNK = 1 << 20


def read(model: HostedModel, order: Order, payload: int) -> Any:
    """Unpickle the payload behind a descriptor into a tracer that is ready to run on a model that is prepared for it.

    Raises InvalidPayload if it is not one, LimitExceeded if it unpacks to too much, and what user code raises
    while it is unpickled.
    """
    blob = unpacked(payload, order)
    try:
        tracer = RequestModel.deserialize(blob, model.persistent, compress=False, unpickler=Unpickler)
        tracer.info.code, tracer.info.frame  # noqa: B018
    except ModuleNotFoundError as error:
        raise InvalidPayload(
            f"Your code needs the Python module {error.name!r}, which this server does not have. What it has is "
            "listed by `nnsight.compare()`; a local file of yours is sent along if it is importable where you run."
        ) from None
    except UnknownPersistentIdError as error:
        raise InvalidPayload(
            f"Your model has a part that the hosted one has not: {error}. Is it the same checkpoint, with the same "
            "transformers version and the same adapters?"
        ) from None
    except (pickle.UnpicklingError, AttributeError, TypeError, ValueError, EOFError, LookupError) as error:
        if _raised_by_user(error):
            raise
        raise InvalidPayload(f"The payload is not a serialized nnsight trace: {error}") from None
    return tracer


def keep_inside() -> None:
    """Have this process, which runs jobs, refuse traces that would run elsewhere."""
    Remotable._remote_backend = RemoteBackend.__init__ = _no_remote_inside


def hasten() -> None:
    """Have this process restore envoys, of which each payload has hundreds, in four fifths of the time."""
    Envoy.__setstate__ = _restored


def _restored(envoy: Envoy, state: dict[str, Any]) -> None:
    """What nnsight's does, with the state as it came in place of a copy, and past `Envoy.__setattr__`."""
    state.setdefault("_parent", None)
    envoy.__dict__ = state
    if children := state["_children"]:
        parent = weakref.ref(envoy)
        for child in children:
            child.__dict__["_parent"] = parent


class Unpickler(pickle.Unpickler):
    """nnsight's, without a call into Python for each part of the model that a payload names: it names hundreds."""

    def __init__(self, file: BinaryIO, persistent: Persistent) -> None:
        super().__init__(file)
        self.persistent_load = persistent.__getitem__  # type: ignore[method-assign]


def run(model: HostedModel, tracer: Any) -> dict[str, Any]:
    """Execute the traced block; returns the saved values by name."""
    tracing.inc()
    try:
        tracer.execute(tracer.info.code)
        saved = tracing._saves()
        return {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in saved}
    finally:
        tracing.dec()
        model.model.interleaver.cancel()


def _no_remote_inside(*_: object, **__: object) -> None:
    raise RuntimeError(
        "A trace inside a remote job runs where the job runs: leave out `remote=True` on it and keep it on the outer "
        "session only."
    )


def _raised_by_user(error: BaseException) -> bool:
    """Whether the innermost frame belongs to code that came with the payload."""
    stack = error.__traceback__
    while stack is not None and stack.tb_next is not None:
        stack = stack.tb_next
    return stack is not None and not stack.tb_frame.f_code.co_filename.startswith((_OURS, _NNSIGHT, _CLOUDPICKLE))


def unpacked(payload: int, order: Order) -> bytes:
    """The payload behind a descriptor, which is closed. Raises InvalidPayload, LimitExceeded."""
    with open(payload, "rb") as file:
        data = _decompressed(file, order.unpacked_bytes) if order.compress else file.read()
    if not data:
        raise InvalidPayload("The payload is empty.")
    return data


def _decompressed(packed: BinaryIO, most: int) -> bytes:
    """Decompress without trusting the size that the frame declares."""
    pieces, total = [], 0
    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            while piece := reader.read(_CHUNK):
                total += len(piece)
                if total > most:
                    raise LimitExceeded("The unpacked payload", most, "bytes", "limits.unpacked_bytes")
                pieces.append(piece)
    except zstandard.ZstdError as error:
        raise InvalidPayload(f"The payload is not a zstd frame: {error}") from None
    return b"".join(pieces)
