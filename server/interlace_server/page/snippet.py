"""The lines with which somebody begins: stock nnsight, this server's address, a model that is hosted here."""

from dataclasses import dataclass

_PICTURES = frozenset({"image-classification", "image-feature-extraction", "object-detection", "depth-estimation"})

_TEXT = """from nnsight import TransformersModel

model = TransformersModel({model}{more})
with model.trace({prompt}, remote=True):
    output = model.output.save()

for name, value in output.items():
    print(name, tuple(value.shape) if hasattr(value, "shape") else type(value).__name__)
"""
_LANGUAGE = """from nnsight import TransformersModel

model = TransformersModel({model}{more})
with model.trace("The Eiffel Tower is in the city of", remote=True):
    logits = model.output.logits.save()

print(tuple(logits.shape), model.tokenizer.decode(logits[0, -1].argmax()))
"""
_PICTURE = """from nnsight import TransformersModel
from PIL import Image

model = TransformersModel({model}{more})
with model.trace(Image.new("RGB", (64, 64), (200, 80, 40)), remote=True):
    output = model.output.save()

for name, value in output.items():
    print(name, tuple(value.shape) if hasattr(value, "shape") else type(value).__name__)
"""
_PIPELINE = """from nnsight.modeling.diffusion import DiffusionModel

model = DiffusionModel({model}{more})
with model.generate("a large red triangle", remote=True, num_inference_steps=4, seed=0) as tracer:
    images = model.output.images.save()

print(images[0].size)
"""


@dataclass(frozen=True)
class Snippet:
    """For one model, and one reader."""

    #: Without a slash at its end.
    url: str
    repo_id: str
    task: str | None
    revision: str
    #: The reader's API key; None where the server asks for none.
    key: str | None

    @property
    def text(self) -> str:
        """Python that runs as it stands where nnsight is installed."""
        more = "" if self.revision == "main" else f", revision={self._quoted(self.revision)}"
        more += "" if self.task is None else f", task={self._quoted(self.task)}"
        body = self._body.format(
            model=self._quoted(self.repo_id), more=more, prompt='"The capital of France is Paris."'
        )
        return self._address + body

    @property
    def _address(self) -> str:
        lines = ["import os", "", f'os.environ["NDIF_HOST"] = {self._quoted(self.url)}']
        lines += [f'os.environ["HF_ENDPOINT"] = {self._quoted(self.url + "/hf")}']
        lines += [] if self.key is None else [f'os.environ["NDIF_API_KEY"] = {self._quoted(self.key)}']
        if self.task == "text-to-text":
            lines += ["", "import interlace", "", "interlace.add_tasks()  # pip install 'interlace[client]'"]
        lines += [""]
        return "\n".join(lines) + "\n"

    @property
    def _body(self) -> str:
        if self.task is None:
            return _PIPELINE
        if self.task in _PICTURES:
            return _PICTURE
        return _LANGUAGE if self.task == "text-generation" else _TEXT

    @staticmethod
    def _quoted(text: str) -> str:
        """As Python writes it, in double quotes where that is possible."""
        return f'"{text}"' if text.isprintable() and not set(text) & set('"\\') else repr(text)
