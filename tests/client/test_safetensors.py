"""A safetensors header is read without a tensor library, and whatever is not as the format says is refused."""

import contextlib
import io
import json
import struct
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlace.protocol.errors import InvalidArtifact
from interlace.protocol.safetensors import LONGEST_HEADER, Header, read_header


def read(data: bytes) -> Header:
    return read_header(io.BytesIO(data), len(data), "a.safetensors")


def made(header: Any, data: bytes = b"") -> bytes:
    """A file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str = "F32", shape: Any = (2, 3), place: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


def test_what_the_library_writes_is_read() -> None:
    tensors = {"a": torch.zeros(2, 3), "b.c": torch.ones(5, dtype=torch.bfloat16), "s": torch.tensor(1.0)}
    header = read(safetensors.torch.save(tensors, {"format": "pt"}))
    assert {name: one.shape for name, one in header.tensors.items()} == {"a": (2, 3), "b.c": (5,), "s": ()}
    assert header.metadata == {"format": "pt"}
    assert header.n_params == 12
    start = header.data_start + header.tensors["b.c"].start
    data = safetensors.torch.save(tensors, {"format": "pt"})[start : start + 10]
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=torch.bfloat16), tensors["b.c"])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "shorter than it says"),
        (b"\x80\x04N.", "shorter than it says"),
        (b"PK\x03\x04" + bytes(100), "shorter than it says"),
        (struct.pack("<Q", 1 << 62) + bytes(100), "shorter than it says"),
        (struct.pack("<Q", LONGEST_HEADER + 1) + b" " * (LONGEST_HEADER + 1), "at most 4,194,304 are read"),
        (made(b"[" * 100_000), "no JSON"),
        (made(b"\xff\xfe"), "no JSON"),
        (made(b'{"a": ' + b"9" * 5000 + b"}"), "no JSON"),
        (made([1]), "no JSON object"),
        (made({"__metadata__": {"a": 1}}), "`__metadata__`"),
        (made(b'{"a":' + json.dumps(tensor()).encode() + b',"a":' + json.dumps(tensor()).encode() + b"}", bytes(24)),
         "there twice"),
        (made({"a": 7}), "`dtype`, `shape` and `data_offsets`"),
        (made({"a": tensor() | {"more": 1}}, bytes(24)), "and nothing else"),
        (made({"a": tensor("PICKLE")}, bytes(24)), "known are: BOOL"),
        (made({"a": tensor(["F32"])}, bytes(24)), "known are: BOOL"),
        (made({"a": tensor(shape=(-2, -3))}, bytes(24)), "whole numbers"),
        (made({"a": tensor(shape=(1 << 60,))}, bytes(24)), "whole numbers"),
        (made({"a": tensor(shape=[True, 6])}, bytes(24)), "whole numbers"),
        (made({"a": tensor(shape=[1] * 9)}, bytes(24)), "whole numbers"),
        (made({"a": tensor(shape=(1 << 30, 1 << 30))}, bytes(24)), "of F32 but"),
        (made({"a": tensor(place=(0, 1 << 40))}, bytes(24)), "of F32 but"),
        (made({"a": tensor(place=(24, 0))}, bytes(24)), "of F32 but"),
        (made({"a": tensor(place=(8, 32))}, bytes(32)), "expected 0"),
        (made({"a": tensor()}, bytes(23)), "end at byte 24"),
        (made({"a": tensor()}, bytes(25)), "end at byte 24"),
        (made({"a": tensor(), "b": tensor()}, bytes(24)), "expected 24"),
        (made({"a" * 513: tensor()}, bytes(24)), "A tensor's name"),
        (made({"a\n": tensor()}, bytes(24)), "A tensor's name"),
        (made({"": tensor()}, bytes(24)), "A tensor's name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(InvalidArtifact) as refused:
        read(data)
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 800


@given(st.binary(max_size=200), st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner)
)))  # fmt: skip
def test_no_bytes_lead_to_another_error(data: bytes, header: Any) -> None:
    for one in (data, made({"a": header}, data), made(data)):
        with contextlib.suppress(InvalidArtifact):
            read(one)
