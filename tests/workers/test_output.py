"""The file of a result: what stock nnsight does with it gives back what was saved, whatever it is."""

import errno
import io
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from interlace.protocol.errors import LimitExceeded, UnsendableValue
from interlace_workers.child.writing import output, packing
from interlace_workers.order import Order

LIMIT = 1 << 30


def written(folder: Path, saved: dict[str, Any], *, compress: bool = True, limit: int = LIMIT) -> bytes:
    file = folder / "result"
    file.write_bytes(b"")
    output.write(saved, os.open(file, os.O_RDWR), Order(compress=compress, result_bytes=limit))
    return file.read_bytes()


def loaded(data: bytes) -> Any:
    """As `RemoteBackend.finalize` of stock nnsight does it."""
    content = zstandard.ZstdDecompressor().decompress(data)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)


def noise(megabytes: float) -> torch.Tensor:
    return torch.randn(int(megabytes * (1 << 18)), generator=torch.Generator().manual_seed(0))


VALUES = {
    "nothing": {},
    "no tensors": {"text": "ü" * 10, "numbers": [1, 2.5, None]},
    "a lot that is no tensor": {"data": os.urandom(600_000), "words": ["word"] * 100_000},
    "words": {"words": [f"word {number % 100}" for number in range(100_000)]},
    "one number": {"loss": torch.tensor(0.5)},
    "an empty tensor": {"none": torch.zeros(0, 3)},
    "less than a block": {"small": noise(0.01)},
    "just over a block": {"noise": noise(0.125)},
    "noise": {"noise": noise(3)},
    "zeros": {"zeros": torch.zeros(1 << 20)},
    "token ids": {"ids": torch.arange(400_000) % 49_152},
    "bfloat16": {"noise": noise(2).bfloat16()},
    "behind a ReLU": {"hidden": noise(4).relu()},
    "bfloat16 in fp32": {"hidden": noise(4).bfloat16().float()},
    "bfloat16 that repeats": {"hidden": noise(0.01).bfloat16().float().repeat(200)},
    "noise and zeros": {"noise": noise(2), "zeros": torch.zeros(1 << 19), "more": noise(1)},
    "many small tensors": {"list": [torch.full((3,), float(number)) for number in range(3_000)]},
    "many tensors of a few kilobytes": {"list": list(noise(4).clone().split(1 << 11))},
    "a parameter": {"weight": torch.nn.Parameter(noise(1))},
    "a sparse tensor": {"sparse": (noise(1) * (noise(1) > 1)).to_sparse()},
    "complex numbers": {"complex": torch.complex(noise(1), noise(1))},
    "a strided tensor": {"strided": noise(1).view(512, 512).t()},
}


@pytest.mark.parametrize("name", VALUES)
def test_a_result_is_the_same_whoever_pickles_it(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own pickler takes small tensors, ours the rest."""
    content = written(tmp_path, VALUES[name], compress=False)
    monkeypatch.setattr(output, "_is_plain", lambda _: False)
    assert written(tmp_path, VALUES[name], compress=False) == content


def test_what_a_user_hangs_on_a_small_tensor_comes_along(tmp_path: Path) -> None:
    class Note:
        text = "from here"

    tensor = torch.zeros(2)
    tensor.note = Note()  # type: ignore[attr-defined]
    assert loaded(written(tmp_path, {"tensor": tensor}))["tensor"].note.text == "from here"


def test_a_view_that_streams_does_not_ship_its_storage() -> None:
    file = io.BytesIO()
    output.dump(noise(1)[:10], file)
    assert len(file.getvalue()) < 4_000


def test_a_client_with_a_fast_link_gets_a_frame_of_the_bytes_as_they_are(tmp_path: Path) -> None:
    file, saved = tmp_path / "raw", VALUES["token ids"]
    file.write_bytes(b"")
    output.write(saved, os.open(file, os.O_RDWR), Order(compress=True, result_bytes=LIMIT, raw=True))
    assert file.stat().st_size > saved["ids"].nbytes > 3 * len(written(tmp_path, saved))
    assert torch.equal(loaded(file.read_bytes())["ids"], saved["ids"])


def test_so_little_that_it_is_not_worth_it_is_not_compressed(tmp_path: Path) -> None:
    ids = {"ids": torch.zeros(3_000, dtype=torch.int64)}
    assert len(written(tmp_path, ids)) > 24_000
    assert len(written(tmp_path, {"ids": ids["ids"].repeat(3)})) < 8_000


@pytest.mark.parametrize("name", VALUES)
def test_one_frame_with_its_size_that_a_stock_client_reads(tmp_path: Path, name: str) -> None:
    data = written(tmp_path, VALUES[name])
    content = zstandard.ZstdDecompressor().decompress(data)
    assert zstandard.get_frame_parameters(data).content_size == len(content)
    decompressor = zstandard.ZstdDecompressor().decompressobj()  # the streaming one ends at the first frame's end
    assert decompressor.decompress(data) == content
    assert (decompressor.eof, decompressor.unused_data) == (True, b"")
    assert content == written(tmp_path, VALUES[name], compress=False)
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    back = loaded(data)
    assert back.keys() == VALUES[name].keys()
    for key, value in VALUES[name].items():
        assert_same(back[key], value)


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one.to_dense(), other.to_dense()) if one.is_sparse else torch.equal(one, other)
    elif isinstance(one, list) and one and isinstance(one[0], torch.Tensor):
        assert all(map(torch.equal, one, other))
    else:
        assert one == other


@pytest.mark.parametrize("megabytes", [1 / 8, 2, 9])
def test_noise_is_not_compressed_for_nothing(tmp_path: Path, megabytes: float) -> None:
    """A client may hold no more than a block of it: a raw frame asks for no larger window."""
    data = written(tmp_path, {"noise": noise(megabytes)})
    content = len(zstandard.ZstdDecompressor().decompress(data))
    assert zstandard.get_frame_parameters(data).window_size == 128 << 10
    assert content < len(data) < packing.most_bytes(content)
    assert data.count(noise(megabytes).numpy().tobytes()[:1000]) == 1


def test_what_compresses_is_compressed(tmp_path: Path) -> None:
    most = {
        "zeros": 0.01,
        "token ids": 0.5,
        "behind a ReLU": 0.6,
        "words": 0.1,
        "bfloat16 in fp32": 0.55,
        "bfloat16 that repeats": 0.1,
    }
    for name, part in most.items():
        data = written(tmp_path, VALUES[name])
        assert len(data) < part * len(zstandard.ZstdDecompressor().decompress(data)), name


def test_what_does_not_repeat_is_coded_and_no_more(tmp_path: Path) -> None:
    """A window of 128 KiB is that of the fast way, which level 1 would find the repeats of."""
    windows = {name: zstandard.get_frame_parameters(written(tmp_path, VALUES[name])).window_size for name in VALUES}
    assert windows["bfloat16 in fp32"] == windows["noise"] == 128 << 10
    assert windows["bfloat16 that repeats"] > 128 << 10


def test_most_of_the_bytes_decide(tmp_path: Path) -> None:
    """A mask beside activations does not have them compressed, nor do a few numbers keep zeros from it."""
    noisy = written(tmp_path, {"mask": torch.ones(1 << 16), "hidden": noise(8)})
    assert len(noisy) > 8 << 20
    assert len(written(tmp_path, {"hidden": noise(1), "zeros": torch.zeros(8 << 18)})) < 2 << 20


def test_two_names_of_one_storage_stay_one(tmp_path: Path) -> None:
    shared = noise(1)
    data = written(tmp_path, {"one": shared, "two": shared, "view": shared[:-1000]})
    assert len(data) < 1.2 * (1 << 20)
    back = loaded(data)
    back["one"][0] = 7
    assert back["two"][0] == back["view"][0] == 7


def test_a_view_of_much_ships_what_it_shows(tmp_path: Path) -> None:
    wide = noise(4)
    data = written(tmp_path, {"piece": wide[1000:1010], "columns": wide.view(1024, 1024)[:, :256]})
    assert len(data) < 1.2 * (1 << 20)
    back = loaded(data)
    assert torch.equal(back["piece"], wide[1000:1010])
    assert torch.equal(back["columns"], wide.view(1024, 1024)[:, :256])


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("value", [noise(4), torch.zeros(1 << 20), "x" * (4 << 20), noise(0.01)])
def test_a_result_over_the_limit_says_its_size_and_fills_no_disk(tmp_path: Path, value: Any, compress: bool) -> None:
    limit = 1 << 20 if not (isinstance(value, torch.Tensor) and value.nbytes < 1 << 20) else 1 << 10
    with pytest.raises(LimitExceeded, match=r"limits\.result_bytes") as caught:
        written(tmp_path, {"large": value}, compress=compress, limit=limit)
    size = len(written(tmp_path, {"large": value}, compress=False))
    assert f"{size:,} bytes" in str(caught.value)
    with pytest.raises(LimitExceeded):
        written(tmp_path, {"large": value}, compress=compress, limit=limit)
    assert (tmp_path / "result").stat().st_size <= packing.most_bytes(limit)


@pytest.mark.parametrize("value", [noise(4), torch.zeros(1 << 20), noise(0.01)])
def test_a_result_at_the_limit_is_none_too_much(tmp_path: Path, value: torch.Tensor) -> None:
    size = len(written(tmp_path, {"large": value}, compress=False))
    assert torch.equal(loaded(written(tmp_path, {"large": value}, limit=size))["large"], value)
    with pytest.raises(LimitExceeded):
        written(tmp_path, {"large": value}, limit=size - 1)


def test_a_value_that_cannot_be_sent_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsendableValue, match="bad"):
        written(tmp_path, {"good": noise(2), "bad": sys._getframe()})


def test_a_disk_that_is_full_is_told(tmp_path: Path) -> None:
    """What a write of the file raises comes out, not torch's words for it."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            written(tmp_path, {"noise": noise(3)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


_LITTLE_MEMORY = """
import os, resource, sys, torch
from interlace_workers.child.writing import output
from interlace_workers.order import Order

value = torch.{make}
first = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
output.write({{"warm": torch.zeros(1 << 18)}}, first, Order(True, result_bytes=1 << 30))
with open("/proc/self/statm") as statm:
    now = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (16 << 20), now + (16 << 20)))
output.write({{"value": value}}, os.open(sys.argv[1], os.O_RDWR | os.O_TRUNC), Order({compress}, result_bytes=1 << 30))
"""


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("make", ["randn(32 << 20)", "arange(16 << 20)"])
def test_writing_needs_no_second_copy(tmp_path: Path, make: str, compress: bool) -> None:
    """128 MiB are written by a process that may take 16 MiB more."""
    script = _LITTLE_MEMORY.format(make=make, compress=compress)
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "result")], check=True, timeout=120)
    data = (tmp_path / "result").read_bytes()
    content = zstandard.ZstdDecompressor().decompress(data) if compress else data
    assert torch.load(io.BytesIO(content), weights_only=False)["value"].nbytes == 128 << 20
