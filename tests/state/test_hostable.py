"""What is refused before anything is fetched, with the numbers."""

from typing import Any

import pytest

from interlace_state.config import Config
from interlace_state.hostable import against, too_tight
from interlace_state.settings.hosting import MemoryConfig
from interlace_state.settings.models import ModelConfig

RESIDENT = {"executor": "resident", "trusted": ("lab",), "device": "cuda"}


@pytest.mark.parametrize(
    ("model", "config", "said"),
    [
        (RESIDENT, {"isolation": "required"}, "`isolation: required` leaves no room for resident models"),
        (RESIDENT | {"gpus": 2}, {"runtime": "process"}, "`gpus: 2` are Ray's to reserve"),
        ({"gpus": 2}, {"runtime": "ray"}, "A model with `gpus` is resident"),
        ({"quantization": "fp8"}, {}, "needs a GPU of compute capability 8.9"),
        (RESIDENT | {"gpus": 2}, {"runtime": "ray"}, None),
        ({"quantization": "nf4"}, {}, None),
    ],
)
def test_what_the_configuration_alone_rules_out(model: Any, config: Any, said: str | None) -> None:
    reason = against(ModelConfig(source="a/b", **model), Config(**config))
    assert reason is None if said is None else said in str(reason)


def test_room_for_no_model_at_all_is_said_in_numbers() -> None:
    assert too_tight(Config()) is None
    tight = too_tight(Config(memory=MemoryConfig(limit_bytes=300 << 20)))
    assert tight is not None
    assert "480 MiB" in tight
    assert "300 MiB" in tight
