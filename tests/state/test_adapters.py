"""Which adapters a request may name is the operator's to say; whether one fits a model, as far as it says itself."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from interlace.protocol.artifact import AdapterRef, Artifact, ArtifactFile, Base, Wanted, content_hash
from interlace.protocol.errors import AdapterRefused
from interlace.protocol.model import ModelKey
from interlace_state.adapters import check_base, check_policy, check_stated_base, check_takes
from interlace_state.models import ModelCard
from interlace_state.settings.adapters import AdaptersConfig

CARD = ModelCard(key=ModelKey(repo_id="lab/base"), commit="a" * 40, dtype="float32", config={})
FILE = ArtifactFile(name="adapter_config.json", size=1, sha256="0" * 64)


def ref(text: str) -> AdapterRef:
    return AdapterRef.parse(text, "env.peft")


@pytest.mark.parametrize(
    ("name", "patterns", "allowed"),
    [
        ("org/name", (), False),
        ("org/name", ("*",), True),
        ("org/name", ("org/*",), True),
        ("Org/Name", ("org/*",), True),
        ("org/name", ("org/name",), True),
        ("org/name", ("org/nam", "or/*", "name"), False),
        ("organisation/name", ("org/*",), False),
        ("name", ("org/*",), False),
        ("/srv/a/x", ("*",), False),
    ],
)
def test_hub_repositories(name: str, patterns: tuple[str, ...], allowed: bool) -> None:
    config = AdaptersConfig(hub=patterns)
    if allowed:
        check_policy(ref(name), config)
    else:
        with pytest.raises(AdapterRefused, match=r"adapters\.(hub|folders)"):
            check_policy(ref(name), config)


@pytest.mark.parametrize("pattern", ["", "*/*", "org/**", "/srv", "../x", "org/*/x"])
def test_a_pattern_that_is_none(pattern: str) -> None:
    with pytest.raises(ValidationError, match="expected 'org/name'"):
        AdaptersConfig(hub=(pattern,))


def test_folders() -> None:
    config = AdaptersConfig(folders=(Path("/srv/a"),))
    for allowed in ("/srv/a", "/srv/a/x", "/srv/a/x/y"):
        check_policy(ref(allowed), config)
    for other in ("/srv", "/srv/ab", "/srv/a/../b", "/srv/a/x/../../b", "/", "/srv/A"):
        with pytest.raises(AdapterRefused, match=r"adapters\.folders"):
            check_policy(ref(other), config)


def test_a_family_takes_its_own_kind() -> None:
    pipeline = CARD.model_copy(update={"key": ModelKey(wrapper="DiffusionModel", repo_id="lab/base", task=None)})
    lora, peft = Wanted(ref("org/name"), "diffusers-lora"), Wanted(ref("org/name"), "peft")
    check_takes(peft, CARD)
    check_takes(lora, pipeline)
    for wanted, card in ((lora, CARD), (peft, pipeline)):
        with pytest.raises(AdapterRefused, match="it takes none"):
            check_takes(wanted, card)


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (None, ""),
        (Base(repo_id="LAB/base"), ""),
        (Base(repo_id="base"), ""),
        (Base(repo_id="lab/other"), "was made for lab/other, and this model is lab/base"),
        (Base(repo_id="lab/base", key=CARD.key.canonical, commit=CARD.commit), ""),
        (
            Base(repo_id="lab/base", key=CARD.key.canonical, commit="b" * 40),
            f"at {'b' * 40}; hosted here is {'a' * 40}",
        ),
    ],
)
def test_an_artifact_and_its_base(base: Base | None, sentence: str) -> None:
    files = (FILE,)
    artifact = Artifact(
        id="0" * 16, hash=content_hash("peft", files), kind="peft", tenant="local", created=0, base=base, files=files,
        n_params=1,
    )  # fmt: skip
    wanted = Wanted(ref("artifact:" + "0" * 16), "peft")
    if not sentence:
        check_base(artifact, wanted, CARD)
    else:
        with pytest.raises(AdapterRefused, match=sentence):
            check_base(artifact, wanted, CARD)
    if not sentence:  # a pipeline's LoRA may lie in PEFT's files, a language model's in no pipeline's
        check_base(artifact, Wanted(wanted.ref, "diffusers-lora"), CARD)
    other = artifact.model_copy(update={"kind": "diffusers-lora"})
    with pytest.raises(AdapterRefused, match="is a diffusers-lora; expected a peft"):
        check_base(other, wanted, CARD)


def test_what_an_adapter_says_of_its_base() -> None:
    check_stated_base(ref("org/name"), None, CARD)
    check_stated_base(ref("org/name"), "lab/base", CARD)
    with pytest.raises(AdapterRefused, match="model='lab/base'"):
        check_stated_base(ref("org/name"), "lab/other", CARD)
