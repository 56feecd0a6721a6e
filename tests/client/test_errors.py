"""What a refusal says."""

import pytest

from interlace.protocol.errors import LimitExceeded


@pytest.mark.parametrize(
    ("setting", "way"),
    [
        (
            "limits.result_bytes",
            "`limits.result_bytes` in the configuration, or for one tenant and at once: "
            "`interlace admin limits TENANT result_bytes=N`.",
        ),
        ("lake.kept_tags", "`lake.kept_tags` in the configuration."),
    ],
)
def test_a_limit_says_its_value_and_how_it_is_raised(setting: str, way: str) -> None:
    refused = LimitExceeded("The thing", 1000, "bytes", setting, "Or make room.")
    assert str(refused) == (
        f"The thing is over the limit of 1,000 bytes. The operator can raise it: {way} Or make room."
    )
