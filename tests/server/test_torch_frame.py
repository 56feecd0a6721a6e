import io
from typing import Any

import pytest
import torch
from nnsight.schema.response import ResponseModel, Status

from interlace_server import torch_frame


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        255,
        2**31 - 1,
        -(2**31),
        2**31,
        2**63,
        -(2**63) - 1,
        1.5,
        float("inf"),
        "",
        "ü 🟢",
        "long" * 100_000,
        b"",
        bytes(range(256)) * 1000,
        {},
        [],
        {"nested": {"list": [1, None, "two", b"three"]}},
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:12]}",
)
def test_torch_reads_what_we_write(value: Any) -> None:
    loaded = torch.load(io.BytesIO(torch_frame.encode(value)), map_location="cpu", weights_only=False)
    assert loaded == value
    assert type(loaded) is type(value)


def test_a_completed_frame_of_20_mib_is_a_response_of_nnsight() -> None:
    body = torch.randint(0, 256, (20 << 20,), dtype=torch.uint8).numpy().tobytes()
    frame = torch_frame.encode(
        {"id": "a" * 32, "status": "COMPLETED", "description": "done", "data": body, "meta": {"runtime": 0.25}}
    )
    response = ResponseModel.unpickle(frame)
    assert (response.id, response.status, response.description) == ("a" * 32, Status.COMPLETED, "done")
    assert response.data == body
    assert response.meta == {"runtime": 0.25}
    assert len(frame) < len(body) + 1024


@pytest.mark.parametrize("size", [0, 1, 300, 1 << 20])
def test_what_is_put_into_a_hole_is_read_in_its_place(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    before, behind = torch_frame.encode_around({"id": "a", "data": torch_frame.Hole(size), "meta": {"n": 1}})
    assert before + body + behind == torch_frame.encode({"id": "a", "data": body, "meta": {"n": 1}})


def test_a_hole_of_more_than_4_gib_has_a_length_of_8_bytes() -> None:
    before, _ = torch_frame.encode_around(torch_frame.Hole(5 << 30))
    assert before.endswith(b"\x8e" + (5 << 30).to_bytes(8, "little"))


def test_what_is_not_plain_is_refused() -> None:
    with pytest.raises(TypeError, match="complex is not a plain value"):
        torch_frame.encode({"data": 1j})  # type: ignore[dict-item]


def test_what_torch_saved_is_loaded_in_its_place() -> None:
    """Of a tensor and of a value of any other kind: we never look into either."""
    saved = []
    for value in (torch.arange(6).reshape(2, 3), {"a": [1, torch.zeros(2)]}):
        with io.BytesIO() as file:
            torch.save(value, file, pickle_protocol=4)
            saved.append(torch_frame.Saved(file.getvalue()))
    frame = torch_frame.encode({"id": "x", "status": "RUNNING", "data": {"tensor": saved[0], "other": saved[1]}})
    response = ResponseModel.unpickle(frame)
    assert response.status is Status.RUNNING
    assert torch.equal(response.data["tensor"], torch.arange(6).reshape(2, 3))
    assert torch.equal(response.data["other"]["a"][1], torch.zeros(2))
