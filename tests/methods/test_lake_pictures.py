"""Promise: pictures are attributed to the adapter that denoises them best; what cannot be told is undecided."""

from pathlib import Path
from typing import Any

import drawn_shapes
import method_cases
import pytest
import tiny_diffusion
import torch
from nnsight.modeling.diffusion import DiffusionModel

from interlace.methods import find
from interlace.methods.lake.spec import AttributeImagesResult
from interlace.methods.notebook import Notebook, run
from interlace.protocol.errors import InvalidRequest

SPEC = find("lake.attribute_images")


def test_pictures_are_attributed(tmp_path: Path) -> None:
    model: Any = DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)
    notebook = Notebook(tmp_path, bar=False, seed=2)

    def kept(n: int, seed: int, style: str) -> str:
        return notebook.artifact("images", *drawn_shapes.draw(n, seed, (style,)).images.pack())

    quick = {"batch": 3, "crop": 1, "rank": 4, "lr": 5e-3, "preserve_lambda": 0, "evaluation": {"n_per_prompt": 0}}
    learned = {**quick, "images": kept(6, 1, "framed"), "steps": 12}
    adapters = [
        run(find("customize.style"), model, learned, notebook).artifacts[0],
        notebook.artifact(*method_cases._lora()),  # of another mind
    ]
    before = {name: one.clone() for name, one in model.pipeline.unet.state_dict().items()}

    def asked(images: str, **more: Any) -> AttributeImagesResult:
        params = {"images": images, "candidates": adapters, "suffix": " in the style of sks art", "draws": 8}
        result = run(SPEC, model, params | more, notebook)
        assert isinstance(result, AttributeImagesResult)
        return result

    framed = kept(4, 9, "framed")
    found = asked(framed)
    assert found.best == adapters[0]
    assert found.metric("decided").value == 1
    assert found.metric("margin").value > 0
    rows = found.table("candidates").rows
    assert rows[0][0] == adapters[0]
    assert {row[0] for row in rows} == {*adapters, "model"}
    assert sum(int(row[4]) for row in rows) == 4
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)
    assert asked(kept(4, 9, "plain"), candidates=adapters[:1]).best == "model"
    assert asked(framed, batch=5).table("candidates") == found.table("candidates")
    one = asked(kept(1, 9, "framed"))
    assert (one.metric("decided").value, len(one.warnings)) == (0, 1)  # of a single picture nobody knows the spread
    after = model.pipeline.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], one) for name, one in before.items())
    with pytest.raises(InvalidRequest, match="two or more different ones"):
        asked(framed, candidates=[adapters[0]], include_model=False)
    with pytest.raises(InvalidRequest, match="two or more different ones"):
        asked(framed, candidates=[adapters[0], adapters[0]])


class Stopped(Notebook):
    """A notebook that is cancelled once it was asked so many times."""

    left = 3

    @property
    def stopping(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_cancelled_attribution_ends_with_what_it_has(tmp_path: Path) -> None:
    model: Any = DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)
    report = Stopped(tmp_path, bar=False, seed=2)
    images = report.artifact("images", *drawn_shapes.draw(2, 1, ("framed",)).images.pack())
    adapter = report.artifact(*method_cases._lora())
    # Asked after each of the model's two pictures, then after the model; the fourth is the adapter's first picture.
    found = run(SPEC, model, {"images": images, "candidates": [adapter], "draws": 2}, report)
    assert [row[0] for row in found.table("candidates").rows] == ["model"]
    assert [(metric.name, metric.value) for metric in found.metrics] == [("decided", 0)]
    assert found.warnings == ("Cancelled after 1 of 2 candidates, on 2 of 2 images.",)
