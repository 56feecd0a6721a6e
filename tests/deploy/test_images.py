"""The images: they build from a lock that holds what pyproject.toml asks for, and run without privileges."""

import re

import pytest
from checked import validated
from locks import IMAGES, ROOT, asked, pinned
from packaging.utils import canonicalize_name

LOCKS = {
    "gateway": (("server", "pictures", "otel", "commands"), ("requirements-gateway.txt",)),
    "workers": (("workers", "otel"), ("requirements-workers.txt", "requirements-torch.txt")),
}
_PLACE = {"python_version": "3.11", "python_full_version": "3.11.14", "sys_platform": "linux", "extra": ""}


@pytest.mark.parametrize("image", LOCKS)
def test_the_lock_holds_what_is_asked_for(image: str) -> None:
    """If this fails, pyproject.toml has changed: deploy/images/lock.sh."""
    extras, files = LOCKS[image]
    versions = pinned(*files)
    for requirement in (one for extra in (None, *extras) for one in asked(extra)):
        if requirement.marker is None or requirement.marker.evaluate(_PLACE):
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_only_the_workers_have_torch_and_one_file_has_it() -> None:
    assert "torch" in pinned("requirements-torch.txt")
    for file in ("requirements-gateway.txt", "requirements-workers.txt"):
        assert not {name for name in pinned(file) if name.startswith(("torch", "triton", "nvidia-", "cuda-"))}
    assert not {"torch", "nnsight", "ray", "transformers"} & set(pinned("requirements-gateway.txt"))


def test_the_lock_is_of_the_torch_that_is_tested() -> None:
    assert f"torch=={pinned('requirements-torch.txt')['torch']}" in (ROOT / "Makefile").read_text()


def test_nothing_comes_from_outside_of_the_lock() -> None:
    for image in LOCKS:
        text = (IMAGES / f"{image}.Dockerfile").read_text().replace("\\\n", " ")
        for line in re.findall(r"^RUN pip install.*", text, flags=re.M):
            assert "--require-hashes" in line or "--no-deps" in line, line
        files = re.findall(r"requirements-\w+\.txt", text)
        assert {"requirements-build.txt", *LOCKS[image][1]} == set(files)
        assert all((IMAGES / file).is_file() for file in files)


@pytest.mark.parametrize("image", LOCKS)
def test_bytecode_is_in_it_where_nothing_can_be_written(image: str) -> None:
    """Else each start of a model's process compiles torch anew: seconds of the processor."""
    assert "--no-compile" not in (IMAGES / f"{image}.Dockerfile").read_text()


@pytest.mark.parametrize("image", LOCKS)
def test_a_linter_has_nothing_to_say(image: str) -> None:
    validated(["hadolint", IMAGES / f"{image}.Dockerfile"])


@pytest.mark.parametrize("image", LOCKS)
def test_it_runs_as_nobody_in_particular(image: str) -> None:
    users = re.findall(r"^USER (.*)$", (IMAGES / f"{image}.Dockerfile").read_text(), flags=re.M)
    assert users == ["10001:10001"]


def test_the_context_leaves_out_what_is_secret() -> None:
    words = (ROOT / ".dockerignore").read_text().split("\n")
    assert words[1] == "*"
    assert words.index("deploy/secrets") > words.index("!deploy")


@pytest.mark.parametrize("script", ["deploy/secrets.sh", "deploy/images/lock.sh", "deploy/images/ray_head.sh"])
def test_scripts_are_sound(script: str) -> None:
    validated(["shellcheck", ROOT / script])
    assert (ROOT / script).stat().st_mode & 0o111
