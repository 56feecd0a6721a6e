"""What stock nnsight is told while a model comes."""

import pytest

from interlace.protocol.hosting import Moment, Phase
from interlace_server.nnsight_wire import deploys


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        (
            Moment(phase=Phase.DOWNLOADING, bytes_done=1_000_000, bytes_total=3_000_000, at=1.0),
            "Model Deploying... The model is downloaded: 1 of 3 MB are here.",
        ),
        (
            Moment(phase=Phase.QUEUED, text="It needs 3 GiB.", at=1.0),
            "Model Deploying... The model waits to be loaded: It needs 3 GiB.",
        ),
        (Moment(phase=Phase.LOADING, at=1.0), "Model Deploying... The model's weights are loaded."),
        (Moment(phase=Phase.READY, at=1.0), "Model Deploying..."),
    ],
)
def test_a_client_that_waits_for_its_model_is_told_what_that_does(moment: Moment, said: str) -> None:
    assert deploys("0" * 32, moment).description == said
