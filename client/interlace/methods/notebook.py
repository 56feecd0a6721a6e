"""A method on one's own machine: what it says goes to a progress bar, what it makes into a folder."""

import json
import random
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy
import torch
from pydantic import ValidationError
from tqdm.auto import tqdm

from interlace.methods.base import ArtifactName, Checkpoint, Opened, Params, Report, Result, Spec, Texts
from interlace.methods.shared.display import Display
from interlace.methods.shared.files import laid_out, opened
from interlace.protocol.artifact import FILES
from interlace.protocol.errors import InvalidArtifact, InvalidRequest
from interlace.protocol.fields import wrong

_KIND = "kind.json"


class Notebook(Report):
    """The report of a local run. Artifacts are folders in ``folder``, named by their paths."""

    def __init__(self, folder: Path | str = "artifacts", *, seed: int = 0, bar: bool = True) -> None:
        self.seed = seed
        self.cost = {"forwards": 0, "backwards": 0, "tokens": 0}
        self._folder = Path(folder)
        self._bar = tqdm(disable=not bar, leave=False) if bar else None
        self._display = Display()

    @property
    def stopping(self) -> bool:
        return False

    def progress(self, step: int, of: int | None = None, **metrics: float) -> None:
        if self._bar is not None:
            self._bar.total = of
            self._bar.n = step
            self._bar.set_postfix(metrics)

    def picture(self, pixels: torch.Tensor, title: str = "", step: int | None = None) -> None:
        if self._bar is not None:
            # Only here, for it needs Pillow.
            self._display.show(import_module("interlace.methods.shared.preview").preview(pixels))

    def count(self, *, forwards: int = 0, backwards: int = 0, tokens: int = 0) -> None:
        self.cost["forwards"] += forwards
        self.cost["backwards"] += backwards
        self.cost["tokens"] += tokens

    def open(self, name: ArtifactName, kind: str | None = None) -> Opened:
        folder = Path(name)
        if not (folder / _KIND).is_file():
            raise InvalidArtifact(f"{name} is no folder of an artifact; expected the path that `Report.artifact` gave.")
        found = json.loads((folder / _KIND).read_text())["kind"]
        if kind not in (None, found):
            raise InvalidArtifact(f"{name} is of the kind {found}; expected {kind}.")
        files = {file: (folder / file).read_bytes() for file in FILES[found][0]}
        return opened(found, files, name)

    def texts(self, texts: Texts) -> list[str]:
        return texts if isinstance(texts, list) else list(self.open(texts, "texts").config["texts"])

    def artifact(
        self, kind: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], *, name: str = ""
    ) -> ArtifactName:
        files = laid_out(kind, tensors, config)
        number = len(list(self._folder.glob("*"))) + 1
        folder = self._folder / f"{number:03d}-{name or kind}"
        folder.mkdir(parents=True)
        for file, data in files.items():
            (folder / file).write_bytes(data)
        (folder / _KIND).write_text(json.dumps({"kind": kind}))
        return str(folder)

    def checkpoint(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        pass  # a notebook that ends has nobody who would go on

    def resumed(self) -> Checkpoint | None:
        return None


def run(spec: Spec, model: Any, params: Params | Mapping[str, Any], report: Report) -> Result:
    """Run a method here, on a local nnsight model: with its randomness seeded, as a job does it.

    Raises InvalidRequest for params that are not the method's.
    """
    if not isinstance(params, Params):
        params = _checked(spec, dict(params))
    torch.manual_seed(report.seed)
    random.seed(report.seed)
    numpy.random.seed(report.seed % 2**32)
    return spec.load()(model, params, report)


def _checked(spec: Spec, params: dict[str, Any]) -> Params:
    try:
        return spec.params.model_validate(params)
    except ValidationError as error:
        said = wrong(error.errors(include_url=False), params, spec.params)
        raise InvalidRequest(f"The parameters of {spec.ref} are not valid: {said}") from None
