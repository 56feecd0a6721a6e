"""Promise: a method gives the same here and as a job."""

from typing import Any

import tiny

import interlace
from interlace.methods import find
from interlace.methods.notebook import Notebook, run


def test_it(client: interlace.Client, local: Any, tmp_path: Any) -> None:
    params = {"prompts": ["The Eiffel Tower is in", "two plus two is"]}
    here = run(find("lens.logit"), local, params, Notebook(tmp_path))
    there = client.run("lens.logit", model=tiny.GPT2, params=params)
    print(there.envelope)
    assert there == here
