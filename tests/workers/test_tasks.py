"""Which tasks a checkpoint is hosted for: those for which a client without weights can build the same modules."""

from pathlib import Path

import pytest
import tiny
import tiny_families

from interlace_workers.child.loading.tasks import WrongTask, check


def path_of(hub: Path, repo_id: str) -> str:
    (path,) = (hub / f"models--{repo_id.replace('/', '--')}" / "snapshots").iterdir()
    return str(path)


@pytest.mark.parametrize("repo_id", [*tiny_families.ALL, tiny.GPT2, tiny.BERT])
def test_its_own_task_is_right(families: Path, repo_id: str) -> None:
    check(path_of(families, repo_id), tiny.task_of(repo_id), trust_remote_code=False)


@pytest.mark.parametrize(
    ("repo_id", "task", "right"),
    [
        (tiny_families.MAMBA, "fill-mask", "text-generation, feature-extraction."),
        (tiny_families.VIT, "text-generation", "image-classification, image-feature-extraction."),
        (tiny_families.LLAVA, "text-generation", "any-to-any, image-text-to-text, feature-extraction, "),
        # A pipeline would load it; no client could open it.
        (tiny_families.T5, "text-generation", "text-to-text, feature-extraction, text-classification, "),
        (tiny_families.BART, "summarization", "fill-mask, text-to-text, feature-extraction, "),
    ],
)
def test_a_wrong_task_is_told_the_right_ones(families: Path, repo_id: str, task: str, right: str) -> None:
    with pytest.raises(WrongTask, match=f"cannot be hosted for the task '{task}'") as caught:
        check(path_of(families, repo_id), task, trust_remote_code=False)
    assert f"to what it can do: {right}" in str(caught.value)


def test_another_name_of_a_task_is_that_task(families: Path) -> None:
    check(path_of(families, tiny_families.T5), "ner", trust_remote_code=False)
