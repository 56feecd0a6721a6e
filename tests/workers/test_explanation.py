"""What a user can do about an error that torch words, and nothing where nobody knows."""

import pytest

from interlace_workers.child.explanation import explain


@pytest.mark.parametrize(
    "said",
    ["Torch not compiled with CUDA enabled", "Found no NVIDIA driver on your system.", "No CUDA GPUs are available"],
)
def test_a_gpu_that_is_not_there(said: str) -> None:
    assert explain(RuntimeError(said)).endswith("as in `x.to(LAYER.output.device)`.")


def test_an_error_of_ones_own_is_left_alone() -> None:
    assert explain(ValueError("my own words")) == "ValueError: my own words"
