"""What names a model on the wire: nnsight's model key, parsed as data and never imported."""

import hashlib
import json
import re
from typing import Any, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, field_validator

from interlace.protocol.errors import InvalidModelKey

#: Import paths that stock nnsight 0.8 puts into a key -> the wrapper that serves them.
WRAPPERS = {
    "nnsight.modeling.transformers.TransformersModel": "TransformersModel",
    "nnsight.modeling.language.LanguageModel": "TransformersModel",
    "nnsight.modeling.diffusion.DiffusionModel": "DiffusionModel",
}
_PATHS = {
    "TransformersModel": "nnsight.modeling.transformers.TransformersModel",
    "DiffusionModel": "nnsight.modeling.diffusion.DiffusionModel",
}
_FIELDS = {
    "TransformersModel": {"repo_id", "revision", "task", "trust_remote_code"},
    "DiffusionModel": {"repo_id", "revision", "trust_remote_code"},
}
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}")
_TASK = re.compile(r"[a-z0-9_-]{1,64}")
_LONGEST_KEY = 1024  # characters
#: Other names of a task; nnsight writes the first of each into a key.
_ALIASES = {
    "image-to-text": "image-text-to-text",
    "ner": "token-classification",
    "sentiment-analysis": "text-classification",
    "text-to-speech": "text-to-audio",
}


class ModelKey(BaseModel):
    """One hosted model's identity. Two spellings of one model parse to equal keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wrapper: str = "TransformersModel"
    repo_id: str
    revision: str = "main"
    task: str | None = "text-generation"
    trust_remote_code: bool = Field(default=False)

    @field_validator("task")
    @classmethod
    def _own_name(cls, task: str | None) -> str | None:
        return None if task is None else _ALIASES.get(task, task)

    @classmethod
    def parse(cls, text: str) -> "ModelKey":
        """Read a key as stock nnsight mints it: ``import.path.Class:{json}``.

        Raises InvalidModelKey, naming the part that is wrong and what would be right.
        """
        if len(text) > _LONGEST_KEY:
            raise InvalidModelKey(f"The model key is longer than {_LONGEST_KEY} characters.")
        path, colon, suffix = text.partition(":")
        if not colon or path not in WRAPPERS:
            allowed = ", ".join(sorted(WRAPPERS))
            raise InvalidModelKey(f"The model key starts with {path[:80]!r}; it must be one of: {allowed}.")
        wrapper = WRAPPERS[path]
        fields = _fields_of(suffix, wrapper)
        repo_id = fields.get("repo_id")
        if not is_repo_id(repo_id):
            raise InvalidModelKey(f"`repo_id` in the model key is {repo_id!r}; expected 'name' or 'org/name'.")
        revision = fields.get("revision") or "main"
        if not is_revision(revision):
            raise InvalidModelKey(f"`revision` in the model key is {revision!r}; expected a branch, a tag or a commit.")
        task = fields.get("task") if wrapper == "TransformersModel" else None
        if task is not None and not is_task(task):
            raise InvalidModelKey(f"`task` in the model key is {task!r}; expected e.g. 'text-generation'.")
        trust = fields.get("trust_remote_code", False)
        if not isinstance(trust, bool):
            raise InvalidModelKey(f"`trust_remote_code` in the model key is {trust!r}; expected true or false.")
        if wrapper == "TransformersModel" and task is None:
            task = "text-generation"
        return cls(wrapper=wrapper, repo_id=repo_id, revision=revision, task=task, trust_remote_code=trust)

    @property
    def canonical(self) -> str:
        """The one spelling that travels between our parts, readable by stock nnsight."""
        fields: dict[str, Any] = {"repo_id": self.repo_id, "revision": self.revision}
        if self.task is not None:
            fields["task"] = self.task
        if self.trust_remote_code:
            fields["trust_remote_code"] = True
        return f"{_PATHS[self.wrapper]}:{json.dumps(fields)}"

    @property
    def shares_forwards(self) -> bool:
        """Whether there are traces of it that may share a forward."""
        return self.wrapper == "TransformersModel"

    @property
    def slug(self) -> str:
        """A short name for Redis keys, folders and Serve applications: ``[a-z0-9.-]``, unique to the key."""
        digest = hashlib.sha256(self.canonical.encode()).hexdigest()[:8]
        readable = re.sub(r"[^a-z0-9.]+", "-", self.repo_id.lower()).strip("-.")[:48]
        return f"{readable}-{digest}"

    def __str__(self) -> str:
        trust = "trust_remote_code" if self.trust_remote_code else None
        extras = [part for part in (self.revision if self.revision != "main" else None, self.task, trust) if part]
        return f"{self.repo_id} ({', '.join(extras)})" if extras else self.repo_id


def is_repo_id(value: object) -> TypeGuard[str]:
    """Whether a key can name this repository: ``name`` or ``org/name``."""
    return isinstance(value, str) and _REPO_ID.fullmatch(value) is not None and ".." not in value


def is_revision(value: object) -> TypeGuard[str]:
    """Whether a key can name this branch, tag or commit."""
    return isinstance(value, str) and _REVISION.fullmatch(value) is not None and ".." not in value


def is_task(value: object) -> TypeGuard[str]:
    """Whether a key can name this task."""
    return isinstance(value, str) and _TASK.fullmatch(value) is not None


def _fields_of(suffix: str, wrapper: str) -> dict[str, Any]:
    try:
        fields = json.loads(suffix)
    except (ValueError, RecursionError):
        raise InvalidModelKey(
            "The model key must end in a JSON object, such as "
            '{"repo_id": "openai-community/gpt2", "revision": null, "task": "text-generation"}.'
        ) from None
    if not isinstance(fields, dict):
        raise InvalidModelKey(f"The model key must end in a JSON object, not in a {type(fields).__name__}.")
    unknown = sorted(set(fields) - _FIELDS[wrapper])
    if unknown:
        allowed = ", ".join(sorted(_FIELDS[wrapper]))
        raise InvalidModelKey(f"The model key has unknown fields {unknown}; allowed are: {allowed}.")
    return fields
