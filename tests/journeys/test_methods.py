"""Promise: a method runs as a job on a cluster as it does anywhere."""

from pathlib import Path

import running
import tiny
from parity import Lab

import interlace
from interlace.methods import find
from interlace.methods.notebook import Notebook, run

PARAMS = {"prompts": ["The Eiffel Tower is in the city of"], "positions": [0, -1]}


def test_on_ray(on_ray: running.Running, lab: Lab, tmp_path: Path) -> None:
    with interlace.connect(on_ray.url) as client:
        for repo_id in (tiny.LLAMA, tiny.NEOX):
            there = client.run("lens.logit", model=repo_id, params=PARAMS, follow=False)
            here = run(find("lens.logit"), lab.local(repo_id), PARAMS, Notebook(tmp_path, bar=False))
            assert there == here
            assert there.envelope is not None
            assert there.envelope.provenance.model.startswith("nnsight.modeling.transformers.TransformersModel:")
