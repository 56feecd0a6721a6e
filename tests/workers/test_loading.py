"""A model of any family has its processors, is warmed by a trace of its own kind, and says whether its traces share."""

from pathlib import Path

import pytest
import tiny
import tiny_families
import tiny_hosted

from interlace_workers.child import warm
from interlace_workers.child.loading.model import HostedModel
from interlace_workers.child.merging import sharing

EVERY = (*tiny_families.ALL, tiny.GPT2, tiny.BERT)


@pytest.fixture(scope="module")
def hosted(families: Path) -> dict[str, HostedModel]:
    """Every tiny model, loaded."""
    return {repo_id: tiny_hosted.hosted(families, repo_id) for repo_id in EVERY}


@pytest.mark.parametrize("repo_id", EVERY)
def test_every_model_has_a_rehearsal_that_runs_to_its_end(
    hosted: dict[str, HostedModel], repo_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = hosted[repo_id]
    payload = warm.rehearsal(model)
    assert payload
    warm.rehearse(model, payload, lambda: False)
    assert warm.rehearsal(model)  # with all weights again
    assert "not warm" not in capsys.readouterr().err  # nor "not warmed up"


@pytest.mark.parametrize("repo_id", EVERY)
def test_a_rehearsal_ends_at_the_next_layer_once_it_is_over(
    hosted: dict[str, HostedModel], repo_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = hosted[repo_id]
    payload, asked = warm.rehearsal(model), iter([False, True])
    warm.rehearse(model, payload, lambda: next(asked))
    assert next(asked, None) is None
    assert warm.rehearsal(model)
    assert "not warm" not in capsys.readouterr().err


def test_what_takes_no_small_input_is_left_cold_and_says_why(
    hosted: dict[str, HostedModel], capsys: pytest.CaptureFixture[str]
) -> None:
    model = hosted[tiny_families.VIT]
    model.model.pipeline.model.forward, forward = None, model.model.pipeline.model.forward
    assert warm.rehearsal(model) == b""
    assert "not warmed up:\n  TypeError: " in capsys.readouterr().err
    model.model.pipeline.model.forward = forward
    assert warm.rehearsal(model)


def test_the_parts_of_a_processor_are_known_each_by_itself(hosted: dict[str, HostedModel]) -> None:
    """A client's model has them so, and a payload refers to what the client's model has."""
    processor = hosted[tiny_families.LLAVA].model.processor
    persistent = hosted[tiny_families.LLAVA].persistent
    assert persistent["Processor"] is processor
    assert persistent["ImageProcessor"] is processor.image_processor
    assert "ImageProcessor" not in hosted[tiny_families.MAMBA].persistent


def test_models_with_experts_do_not_share(hosted: dict[str, HostedModel]) -> None:
    alone = {repo_id for repo_id, model in hosted.items() if sharing.why_alone(model)}
    assert alone == {tiny_families.JAMBA}
    assert "num_experts" in (sharing.why_alone(hosted[tiny_families.JAMBA]) or "")


def test_the_sizes_of_the_models_inside_of_a_model_count(hosted: dict[str, HostedModel]) -> None:
    sizes = sharing.dimensions(hosted[tiny_families.LLAVA])
    config = hosted[tiny_families.LLAVA].model.config
    seen, read = config.vision_config, config.text_config
    inside = {seen.image_size, seen.patch_size, read.num_key_value_heads, read.hidden_size // read.num_attention_heads}
    assert inside <= sizes
