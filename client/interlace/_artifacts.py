"""What a tenant keeps on a server: upload an adapter once, name it in any request."""

import hashlib
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace import _env
from interlace._http import Http, path, read
from interlace.methods.base import Opened
from interlace.protocol.artifact import CONFIG, FILES, AdapterRef, Artifact, ArtifactKind, ArtifactList
from interlace.protocol.errors import InterlaceError, InvalidArtifact, InvalidRequest

if TYPE_CHECKING:
    from interlace.methods.shared.images import ImageLimits, Images

_ROOT = "/v1/artifacts"
_CHUNK = 1 << 20  # bytes


class Artifacts:
    """`client.artifacts`. An artifact is named by what `upload` and `all` give, by its `ref`, or by its id."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def upload(
        self, folder: Path | str, *, kind: ArtifactKind = "peft", name: str = "", model: str | None = None
    ) -> Artifact:
        """Take in an adapter as `save_pretrained` wrote it (``kind="diffusers-lora"``: as `save_lora_weights` did).

        Other files of the folder stay here. ``model`` is the hosted model that it is for, its repo id or slug, where
        the adapter does not say so itself. Raises InvalidArtifact where a file is missing; Refused.
        """
        folder = Path(folder)
        needed, possible = FILES[kind]
        with ExitStack() as opened:
            files = []
            for file_name in sorted(needed | possible):
                if (folder / file_name).is_file():
                    files.append(("files", (file_name, opened.enter_context((folder / file_name).open("rb")))))
                elif file_name in needed:
                    raise InvalidArtifact(f"{folder} has no {file_name}; a {kind} artifact is made of {_and(needed)}.")
            fields = {"kind": kind, "name": name or folder.resolve().name, **({"model": model} if model else {})}
            return read(Artifact, self._http.post(_ROOT, fields, files))

    def keep(
        self,
        kind: ArtifactKind,
        tensors: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        name: str = "",
        model: str | None = None,
    ) -> Artifact:
        """Take in an artifact from memory: tensors by name, and a configuration. Raises InvalidArtifact, Refused.

        `artifacts.keep("texts", config={"texts": [...]})` keeps texts.
        """
        files = import_module("interlace.methods.shared.files").laid_out(kind, tensors or {}, config or {})
        parts = [("files", (file, io.BytesIO(data))) for file, data in files.items()]
        fields = {"kind": kind, "name": name or kind, **({"model": model} if model else {})}
        return read(Artifact, self._http.post(_ROOT, fields, parts))

    def upload_images(
        self,
        images: Sequence[Any],
        captions: Sequence[str] | str = "",
        *,
        rights: str,
        size: int | tuple[int, int] | None = None,
        name: str = "images",
        limits: "ImageLimits | None" = None,
    ) -> Artifact:
        """Take in images: paths or bytes of PNG and JPEG files, PIL images, arrays (uint8, or floats from 0 to 1).

        Pixels alone travel: EXIF and all else stays here. One caption may be all images'; ``rights`` says by what right
        they are used. ``size`` has each cut to its middle and resized; without it all must be of one size. ``limits``:
        an `interlace.ImageLimits` (10,000 images, 8 MiB a file, 4,096 pixels a side). Needs `interlace[diffusion]`.
        Raises InvalidArtifact, Refused.
        """
        of = import_module("interlace.methods.shared.images")
        found = of.gathered(images, captions, rights=rights, size=size, limits=limits or of.LIMITS)
        return self.keep("images", *found.pack(), name=name)

    def images(self, artifact: Artifact | str) -> "Images":
        """An artifact of the kind `images`, read: `.pixels` (uint8 [n, h, w, 3]), `.captions`, `.rights`, `.sha256`."""
        found: Images = import_module("interlace.methods.shared.images").Images.of(self.open(artifact))
        return found

    def open(self, artifact: Artifact | str) -> Opened:
        """An artifact, read: `.tensors` by name, `.config`, `.kind`."""
        found = self.get(artifact)
        files = {
            file.name: bytes(self._http.fetch(f"{path(_ROOT, found.id)}/files/{file.name}")) for file in found.files
        }
        for file in found.files:
            if hashlib.sha256(files[file.name]).hexdigest() != file.sha256:
                raise InterlaceError(f"{file.name} of artifact {found.id} came damaged; fetch it again.")
        opened: Opened = import_module("interlace.methods.shared.files").opened(found.kind, files, found.ref)
        return opened

    def all(self, tenant: str | None = None) -> list[Artifact]:
        """One's artifacts, the newest first; ``tenant`` is for admins."""
        answer = self._http.ask("GET", _ROOT, {"tenant": tenant} if tenant else None)
        return list(read(ArtifactList, answer).artifacts)

    def get(self, artifact: Artifact | str) -> Artifact:
        """An artifact's manifest."""
        found = read(Artifact, self._http.ask("GET", path(_ROOT, _id(artifact))))
        wanted = artifact if isinstance(artifact, str) else artifact.ref
        if (hash_ := wanted.partition("@")[2]) and not found.hash.startswith(hash_):
            raise InterlaceError(f"Artifact {found.id} has the hash {found.hash}, not {hash_}.")
        return found

    def download(self, artifact: Artifact | str, folder: Path | str, *, layout: ArtifactKind | None = None) -> Path:
        """Fetch an artifact's files into a folder, which PEFT or diffusers can load; a file that broke off goes on.

        ``layout``: `peft` or `diffusers-lora`, for a LoRA that shall lie in the other's files: the same numbers.
        """
        found, folder = self.get(artifact), Path(folder)
        if layout not in (None, found.kind):
            return self._relaid(self.open(found), folder, str(layout))
        folder.mkdir(parents=True, exist_ok=True)
        for file in found.files:
            target = folder / file.name
            part = folder / f"{file.name}.{found.id}.part"
            self._http.download(f"{path(_ROOT, found.id)}/files/{file.name}", target, part)
            if _sha256(target) != file.sha256:
                target.unlink()
                raise InterlaceError(f"{file.name} of artifact {found.id} came damaged; fetch it again.")
        return folder

    def _relaid(self, opened: Opened, folder: Path, layout: str) -> Path:
        """Raises InvalidRequest for what has no other layout."""
        ways = {("diffusers-lora", "peft"): "as_peft", ("peft", "diffusers-lora"): "as_diffusers"}
        way = ways.get((opened.kind, layout))
        if way is None:
            raise InvalidRequest(f"A {opened.kind} artifact has no layout {layout!r}; LoRAs have peft, diffusers-lora.")
        tensors, config = getattr(import_module("interlace.methods.shared.denoising.lora"), way)(
            opened.tensors, opened.config
        )
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in import_module("interlace.methods.shared.files").laid_out(layout, tensors, config).items():
            (folder / name).write_bytes(data)
        return folder

    def delete(self, artifact: Artifact | str) -> None:
        """Remove an artifact for good."""
        self._http.ask("DELETE", path(_ROOT, _id(artifact)))

    def apply(
        self, model: Any, artifact: Artifact | str, *, weight: float = 1.0, t_max: float | None = None
    ) -> Artifact:
        """Have remote requests of a nnsight model run with an adapter: as `peft=` does, and its modules have paths.

        `model.load_adapter(None)` takes it off. With local weights the adapter is on here, too. A diffusion pipeline
        takes several, each with a weight, and from timestep ``t_max`` down if that is given; `take_off` takes them off,
        and here nothing is loaded.
        """
        found = self.get(artifact)
        if hasattr(model, "pipeline") and not hasattr(model, "load_adapter"):
            bound = {} if t_max is None else {"t_max": t_max}
            _env.add(model, "lora", _env.of_lora(found.ref, {"weight": weight, **bound}))
            return found
        if found.kind != "peft":
            raise InvalidRequest(f"Artifact {found.id} is a {found.kind}; `apply` takes a peft artifact.")
        with tempfile.TemporaryDirectory() as folder:
            if model.dispatched:
                self.download(found, folder)
            else:  # the configuration is all that a model without weights needs
                config = self._http.ask("GET", f"{path(_ROOT, found.id)}/files/{CONFIG}").content
                (Path(folder) / CONFIG).write_text(json.dumps(json.loads(config)))
            model.load_adapter(folder)
        model.peft = found.ref
        return found

    def take_off(self, model: Any) -> None:
        """Have remote requests of a diffusion pipeline run without what `apply` has put on."""
        _env.clear(model, "lora")


def _id(artifact: Artifact | str) -> str:
    if isinstance(artifact, Artifact):
        return artifact.id
    return AdapterRef.parse(artifact, "artifact").id if artifact.startswith("artifact:") else artifact


def _and(names: frozenset[str]) -> str:
    return " and ".join(sorted(names))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
