"""What a method's child says of bytes that it has laid down for its parent: artifacts and checkpoints.

Bodies of frames, as JSON; hostile until the parent has looked at them.
"""

import hashlib
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interlace.protocol.frames import BrokenFrame
from interlace.protocol.ids import LABEL

LONGEST = 4 << 10  # bytes of a body
_MOST = 1 << 50
_Count = Annotated[int, Field(ge=0, le=_MOST)]
#: First byte and bytes, in the file of what is given.
Region = tuple[_Count, _Count]


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def encode(self) -> bytes:
        """The body of a frame."""
        return self.model_dump_json().encode()


class Given(_Said):
    """An artifact's files lie there."""

    #: From 1, in their order.
    number: int = Field(ge=1, le=10_000)
    kind: str = Field(max_length=32)
    name: str = Field(max_length=128, pattern=f"^{LABEL}$")
    #: File name -> where it lies.
    files: dict[Annotated[str, Field(max_length=64)], Region] = Field(min_length=1, max_length=4)

    @classmethod
    def decode(cls, body: bytes) -> "Given":
        """Raises BrokenFrame."""
        return _decoded(cls, body)


class Kept(_Said):
    """A checkpoint lies there. Its place is used again: the bytes count only if they have this digest."""

    step: int = Field(ge=0, le=_MOST)
    offset: _Count
    size: _Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @classmethod
    def decode(cls, body: bytes) -> "Kept":
        """Raises BrokenFrame."""
        return _decoded(cls, body)


_Word = TypeVar("_Word", bound=_Said)


def artifact_id(nonce: str, number: int) -> str:
    """The id of a run's artifact: both sides of a run know it, and no other run has it."""
    return hashlib.sha256(f"{nonce}:{number}".encode()).hexdigest()[:16]


def _decoded(kind: type[_Word], body: bytes) -> _Word:
    if len(body) > LONGEST:
        raise BrokenFrame(f"a word of {len(body)} bytes about what is given")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise BrokenFrame(f"no word about what is given: {error}") from None
