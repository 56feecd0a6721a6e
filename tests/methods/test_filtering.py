"""Promise: what a caption or a picture says that should not be there goes, and the report says which and why."""

from pathlib import Path
from typing import Any

import drawn_shapes
import pytest
import tiny_diffusion
import torch
from nnsight.modeling.diffusion import DiffusionModel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from interlace.methods import find
from interlace.methods.base import Opened
from interlace.methods.filtering.criteria import Words, words_of
from interlace.methods.filtering.spec import FilterParams, FilterResult, TextCriteria
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.images import Images
from interlace.methods.shared.judge import Judge
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

FILTER = find("images.filter")


@pytest.fixture(scope="module")
def pipeline_model() -> Any:
    return DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A painting, of a dog", ["painting"]),  # the published filter keeps these two: it splits at spaces only
        ("An oil painting.", ["painting"]),
        ('the "Pop-Art" movement', ["art", "pop art"]),
        ("two PAINTINGS and sketches", ["painting", "sketch"]),
        ("a party of artisans", []),
        ("digital_art; of a cat", ["art", "digital art"]),
        ("art of digital cameras", ["art"]),
        ("a dog on a lawn", []),
    ],
)
def test_words_of_captions(caption: str, found: list[str]) -> None:
    phrases = ("painting", "sketch", "art", "pop art", "digital art")
    assert Words(TextCriteria(phrases=phrases)).found(caption) == found


def test_plurals_are_a_choice() -> None:
    one = Words(TextCriteria(phrases=("sketch",), plurals=False))
    assert (one.found("sketches"), one.found("a sketch")) == ([], ["sketch"])
    assert words_of("Étude, op. 2") == ["étude", "op", "2"]


def captioned(captions: list[str]) -> Images:
    return Images.of_pixels(drawn_shapes.draw(len(captions), 1).pixels, captions, drawn_shapes.RIGHTS)


def kept(notebook: Notebook, images: Images) -> str:
    return notebook.artifact("images", *images.pack())


def test_a_report_of_captions(pipeline_model: Any, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, bar=False)
    images = captioned(["a dog", "a painting, of a dog", "", "an art logo", "a cat"])
    result = run(FILTER, pipeline_model, {"images": kept(notebook, images)}, notebook)
    assert isinstance(result, FilterResult)
    assert (result.kept, result.removed) == (2, 3)
    assert [row[:1] + row[2:5] for row in result.table("removed").rows] == [
        (1, "a painting, of a dog", "text", "painting"),
        (2, "", "text", "(no caption)"),
        (3, "an art logo", "text", "art"),
    ]
    assert set(result.table("reasons").rows) == {
        ("text", "painting", 1, 1),
        ("text", "(no caption)", 1, 1),
        ("text", "art", 1, 0),
        ("text", "logo", 1, 0),
    }
    left = Images.of(notebook.open(result.artifacts[0]))
    assert left.captions == ("a dog", "a cat")
    assert left.sha256 == (images.sha256[0], images.sha256[4])
    assert result.metric("removed by text").value == 0.6
    assert len(result.pictures) == 1
    assert result.plot() is not None
    everything = {"images": kept(notebook, images), "text": {"phrases": ["dog", "art", "cat"]}}
    nothing = run(FILTER, pipeline_model, everything, notebook)
    assert (nothing.artifacts, nothing.warnings) == ((), ("Nothing is left, so no artifact was made.",))


def test_a_classifier_as_an_artifact(pipeline_model: Any, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, bar=False)
    probe = notebook.artifact(*drawn_shapes.judge(n=300, steps=100))
    drawn = drawn_shapes.draw(24, 9, ("plain", "framed"))
    by = {"scorer": "probe", "probe": probe}
    image = {"by": by, "concepts": [{"name": "framed", "threshold": 0.5}, {"name": "content/ring", "threshold": 2.0}]}
    asked = {"images": kept(notebook, drawn.images), "text": None, "image": image}
    result = run(FILTER, pipeline_model, asked, notebook)
    framed = torch.nonzero(drawn.style == drawn_shapes.STYLES.index("framed")).flatten().tolist()
    assert [row[0] for row in result.table("removed").rows] == framed
    assert {row[4] for row in result.table("removed").rows} == {"framed"}
    assert all(row[3] < row[4] for row in result.table("closest").rows)
    wrong = {**image, "concepts": [{"name": "dada", "threshold": 0.5}]}
    with pytest.raises(InvalidRequest, match="'dada' is no class of the classifier, which has: content/circle"):
        run(FILTER, pipeline_model, {**asked, "image": wrong}, notebook)
    kind, tensors, config = drawn_shapes.judge(n=8, steps=1)
    with pytest.raises(InvalidArtifact, match="lacks the tensor"):
        Judge.of(Opened(kind, {k: v for k, v in tensors.items() if k != "style.bias"}, config, "probe"))


def test_the_pipeline_itself_tells_red_from_blue(pipeline_model: Any, tmp_path: Path) -> None:
    """Its error on a red shape gets smaller when it is told of red, and not when it is told of blue."""
    notebook = Notebook(tmp_path, bar=False)
    drawn = drawn_shapes.draw(8, 2, shapes=("square", "circle"), colours=("red", "blue"))
    by = {"scorer": "denoiser", "template": "a {} square", "levels": [0.7, 0.9], "draws": 1}
    image = {"by": by, "concepts": [{"name": "red", "threshold": 1000}, {"name": "blue", "threshold": 1000}]}
    asked = {"images": kept(notebook, drawn.images), "text": None, "image": image, "batch": 8}
    result = run(FILTER, pipeline_model, asked, notebook)
    said = {row[0]: row[2] for row in result.table("closest").rows}
    right = ["red" if colour == 0 else "blue" for colour in drawn.colour.tolist()]
    assert [said[number] for number in range(8)] == right
    with pytest.raises(InvalidRequest, match="needs a hosted CLIP"):
        run(FILTER, pipeline_model, {**asked, "image": {"by": {"scorer": "clip"}}}, notebook)


class _Hosted:
    """What nnsight makes of a CLIP, as far as a method looks: its module and its processor."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        vision = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 37}
        tokenizer = tiny_diffusion._tokenizer()
        text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 37, "max_position_embeddings": 20}
        heads = {"num_hidden_layers": 2, "num_attention_heads": 4}
        config = CLIPConfig(vision_config={**vision, **heads}, text_config={**text, **heads}, projection_dim=16)
        self._module = CLIPModel(config).eval()
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        self.processor = CLIPProcessor(CLIPImageProcessor(**size), tokenizer)


def test_a_clip_gives_its_own_logits(tmp_path: Path) -> None:
    notebook, model = Notebook(tmp_path, bar=False), _Hosted()
    drawn = drawn_shapes.draw(5, 2)
    image = {"by": {"scorer": "clip", "template": "a {}"}, "concepts": [{"name": "ring", "threshold": 1000}]}
    asked = {"images": kept(notebook, drawn.images), "text": None, "image": image, "batch": 2}
    result = run(FILTER, model, asked, notebook)
    seen = model.processor(text=["a ring"], images=list(drawn.pixels.numpy()), return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model._module(**seen).logits_per_image[:, 0] / model._module.logit_scale.exp() * 100
    said = {row[0]: row[3] for row in result.table("closest").rows}
    torch.testing.assert_close(torch.tensor([said[n] for n in range(5)]), logits, rtol=1e-4, atol=1e-3)


def test_published_criteria_are_there() -> None:
    params = FilterParams(images="-", image={"by": {"scorer": "clip"}})
    assert params.image is not None
    assert params.image.wanted[8].model_dump() == {"name": "printmaking art", "threshold": 16.3}
    assert len(params.image.wanted) == 30
    with pytest.raises(ValueError, match="thresholds are CLIP's"):
        FilterParams(images="-", image={"by": {"scorer": "denoiser"}})
    with pytest.raises(ValueError, match="text and image are both null"):
        FilterParams(images="-", text=None)
