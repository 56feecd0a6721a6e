"""What a server's lake knows: search, cards, lineage, versions, citations; and Hugging Face folders in and out."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace._artifacts import Artifacts
from interlace._hf_folder import card_text, declared_in, in_one_file, kind_of, source_of
from interlace._http import Http, path, read
from interlace.methods.base import Result
from interlace.protocol.artifact import Artifact
from interlace.protocol.errors import InterlaceError, InvalidRequest
from interlace.protocol.lake import (
    Card,
    Citation,
    Comparison,
    Entry,
    EntryChange,
    LakePage,
    LineageGraph,
    Tag,
    Visibility,
)

if TYPE_CHECKING:
    from interlace._client import Client

_ROOT = "/v1/lake"
_PAGE = 100
#: In a folder that was exported: what the lake knows of it.
MANIFEST = "lake.json"
_Named = Entry | Artifact | str


class Lake:
    """`client.lake`. An entry is named by itself, its id, `artifact:ID`, or `lake://OWNER/NAME` with @HASH or :TAG."""

    def __init__(self, http: Http, artifacts: Artifacts, client: "Client") -> None:
        self._http = http
        self._artifacts = artifacts
        self._client = client

    def search(self, query: str = "", *, limit: int = 20, offset: int = 0) -> LakePage:
        """What words and filters find: `"erasing kind:peft works-with:REPO metric:loss<0.5 sort:-accuracy"`."""
        asked = {"q": query, "limit": str(limit), "offset": str(offset)}
        return read(LakePage, self._http.ask("GET", _ROOT, asked))

    def all(self, query: str = "") -> Iterator[Entry]:
        """Everything that a query finds, page by page as it is asked for."""
        offset = 0
        while True:
            page = self.search(query, limit=_PAGE, offset=offset)
            yield from page.entries
            offset += len(page.entries)
            if not page.entries or offset >= page.total:
                return

    def resolve(self, name: str) -> Entry:
        """What a name means now."""
        return read(Entry, self._http.ask("GET", f"{_ROOT}/names/resolve", {"ref": name}))

    def card(self, entry: _Named) -> Card:
        """All that is known of an entry, each statement marked recorded, measured, declared or inferred."""
        return read(Card, self._http.ask("GET", path(_ROOT, self._id(entry))))

    def lineage(self, entry: _Named, depth: int = 3) -> LineageGraph:
        """What it came of and what came of it."""
        return read(
            LineageGraph, self._http.ask("GET", f"{path(_ROOT, self._id(entry))}/lineage", {"depth": str(depth)})
        )

    def versions(self, entry: _Named) -> list[Entry]:
        """Those of the same owner and name, the newest first."""
        found = self._http.ask("GET", f"{path(_ROOT, self._id(entry))}/versions").json()
        return [Entry.model_validate(one) for one in found]

    def cite(self, entry: _Named) -> Citation:
        """BibTeX with the hash, and the call that makes it again."""
        return read(Citation, self._http.ask("GET", f"{path(_ROOT, self._id(entry))}/cite"))

    def tag(self, entry: _Named, tag: str) -> Tag:
        """Have a tag point to one's own artifact, wherever it pointed before."""
        return read(Tag, self._http.ask("PUT", f"{path(_ROOT, self._id(entry))}/tags/{tag}"))

    def untag(self, entry: _Named, tag: str) -> None:
        self._http.ask("DELETE", f"{path(_ROOT, self._id(entry))}/tags/{tag}")

    def change(
        self,
        entry: _Named,
        *,
        visibility: Visibility | None = None,
        declared: Mapping[str, str | None] | None = None,
    ) -> Card:
        """Set who sees one's own artifact, and what one says of it, `{"license": "mit"}`; None takes a field back."""
        said = EntryChange(visibility=visibility, declared=None if declared is None else dict(declared))
        return read(
            Card, self._http.ask("PATCH", path(_ROOT, self._id(entry)), body=said.model_dump(exclude_none=True))
        )

    def delete(self, entry: _Named) -> None:
        """Remove one's own artifact; a tombstone stays in the lineage of what came of it."""
        self._http.ask("DELETE", path(_ROOT, self._id(entry)))

    def compare(self, a: _Named, b: _Named) -> Comparison:
        """Two entries by record. `measure` compares their weights and behaviour."""
        return read(Comparison, self._http.ask("GET", f"{path(_ROOT, self._id(a))}/compare", {"other": self._id(b)}))

    def measure(self, a: _Named, b: _Named, *, follow: bool = True, **params: Any) -> Result:
        """Two entries by weights, layer by layer, and by what they say of `probes=[...]`: a job of `lake.compare`.

        Raises InvalidRequest where no hosted model can hold both.
        """
        request = self.compare(a, b).request
        if request is None:
            raise InvalidRequest(
                "No hosted model can hold both: they must be for one model that is hosted; of two hosted models, run "
                "`lake.sketch` on one first."
            )
        return self._client.run(
            request["method"], model=request["model"], params={**request["params"], **params}, follow=follow
        )

    def recover(self, entries: Sequence[_Named], *, model: str, follow: bool = True, **params: Any) -> Result:
        """Find which of some weights came of which, beside a hosted model: a job of `lake.recover`.

        When each was made is not told by itself, for an upload is no birth: say `times=[...]` where it is known.
        """
        found = [self._artifacts.get(self._id(one)) for one in entries]
        said = {"models": [one.ref for one in found], **params}
        return self._client.run("lake.recover", model=model, params=said, follow=follow)

    def attribute(
        self,
        outputs: Sequence[Mapping[str, str]] | _Named,
        entries: Sequence[_Named],
        *,
        model: str,
        follow: bool = True,
        **params: Any,
    ) -> Result:
        """Find which of some models has most likely written texts, or drawn pictures, an artifact of kind `images`: a
        job of `lake.attribute` or `lake.attribute_images`."""
        said: dict[str, Any] = {"candidates": [self._artifacts.get(self._id(one)).ref for one in entries], **params}
        if isinstance(outputs, Entry | Artifact | str):
            said["images"] = self._artifacts.get(self._id(outputs)).ref
            return self._client.run("lake.attribute_images", model=model, params=said, follow=follow)
        said["outputs"] = [dict(one) for one in outputs]
        return self._client.run("lake.attribute", model=model, params=said, follow=follow)

    def import_folder(self, folder: Path | str, *, model: str | None = None, name: str = "") -> Artifact:
        """Take in a folder as Hugging Face libraries write it: PEFT, diffusers LoRA, SAELens, or a whole model, which
        is put into one file where it lies in several.

        What its README.md says in its head, such as the licence, is declared of it. ``model`` as in
        `artifacts.upload`. Raises InvalidArtifact where it is none of these.
        """
        folder = Path(folder)
        with in_one_file(folder) as whole:
            artifact = self._artifacts.upload(
                whole, kind=kind_of(folder), name=name or folder.resolve().name, model=model
            )
        if declared := declared_in(folder):
            self.change(artifact, declared=declared)
        return self._artifacts.get(artifact)

    def import_repo(self, repo_id: str, *, revision: str | None = None, model: str | None = None) -> Artifact:
        """As `import_folder`, of a repository on the hub or in the local cache of it."""
        folder, commit = source_of(repo_id, revision)
        artifact = self.import_folder(folder, model=model, name=repo_id)
        self.change(artifact, declared={"source": f"https://huggingface.co/{repo_id}/tree/{commit}"})
        return self._artifacts.get(artifact)

    def export_folder(self, entry: _Named, folder: Path | str) -> Path:
        """Write an artifact as its own libraries load it, with a README.md for the hub and all that is known of it."""
        folder = Path(folder)
        card = self.card(entry)
        artifact = self._artifacts.get(card.entry.id)
        self._artifacts.download(artifact, folder)
        (folder / "README.md").write_text(card_text(card, artifact, self.cite(entry)))
        known = {"manifest": artifact.model_dump(mode="json"), "card": card.model_dump(mode="json")}
        (folder / MANIFEST).write_text(json.dumps(known, indent=1))
        return folder

    def verify(self, folder: Path | str) -> bool:
        """Whether the files of an exported folder are still those that were exported."""
        folder = Path(folder)
        manifest = Artifact.model_validate(json.loads((folder / MANIFEST).read_text())["manifest"])
        return all(
            hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256 for file in manifest.files
        )

    def _id(self, entry: _Named) -> str:
        if not isinstance(entry, str):
            return entry.id
        if entry.startswith("lake://"):
            return self.resolve(entry).id
        bare, _, hash_ = entry.removeprefix("artifact:").partition("@")
        if hash_ and not self.resolve(entry).hash.startswith(hash_):
            raise InterlaceError(f"Artifact {bare} has another hash than {hash_}.")
        return bare
