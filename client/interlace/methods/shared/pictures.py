"""A small picture in a result: a PNG as text, which a page or a notebook shows."""

import base64
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: Characters of one picture as base64, about 3 MB of PNG.
LONGEST_PICTURE = 4 << 20


class Picture(BaseModel):
    """What a result shows. A notebook draws it by itself (`_repr_png_`)."""

    model_config = ConfigDict(frozen=True)

    title: Annotated[str, Field(max_length=400)]
    #: A PNG, in base64.
    png: Annotated[str, Field(max_length=LONGEST_PICTURE)]

    @classmethod
    def of(cls, title: str, data: bytes) -> "Picture":
        """A picture of PNG bytes."""
        return cls(title=title, png=base64.b64encode(data).decode())

    @property
    def data(self) -> bytes:
        """The PNG file's bytes."""
        return base64.b64decode(self.png)

    def _repr_png_(self) -> bytes:
        return self.data
