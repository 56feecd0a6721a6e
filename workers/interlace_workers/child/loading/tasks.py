"""Which transformers tasks a checkpoint can be hosted for."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from interlace import add_tasks

#: What a checkpoint has one of, where a task that takes any model can do something with it.
_FILES = {
    "feature-extraction": ("tokenizer.json", "tokenizer_config.json"),
    "image-feature-extraction": ("preprocessor_config.json", "processor_config.json"),
}


class WrongTask(ValueError):
    """The checkpoint cannot be hosted for the task; the message says for which it can."""


def check(path: str, task: str, *, trust_remote_code: bool) -> None:
    """Raises WrongTask where clients could not open the checkpoint in ``path`` for a task, of transformers or of ours.

    A pipeline is laxer: it loads a T5 for text generation, which a client, who has no weights, cannot build.
    """
    add_tasks()
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    if _classes(PIPELINE_REGISTRY.task_aliases.get(task, task), config):
        return
    architecture = ", ".join(config.architectures or [type(config).__name__])
    fitting = ", ".join(_fitting(config, Path(path))) or "none that transformers has a pipeline for"
    raise WrongTask(
        f"{architecture} cannot be hosted for the task {task!r}. Set `task` (`--task`) to what it can do: {fitting}."
    )


def _fitting(config: Any, folder: Path) -> list[str]:
    """The tasks with a class for the configuration; those first whose class is the checkpoint's own."""
    own = set(config.architectures or ())
    found = {task: _classes(task, config) for task in PIPELINE_REGISTRY.supported_tasks}
    fitting = [
        task
        for task, classes in found.items()
        if classes and (not _is_for_any(task) or any((folder / file).exists() for file in _FILES.get(task, ())))
    ]
    return sorted(fitting, key=lambda task: (own.isdisjoint(found[task]), task))


def _is_for_any(task: str) -> bool:
    """Whether every model has a class for the task, so that it tells nothing."""
    return all(auto is AutoModel for auto in PIPELINE_REGISTRY.supported_tasks[task]["pt"])


def _classes(task: str, config: Any) -> list[str]:
    """The names of the classes that the task takes for the configuration; empty for a task that there is not."""
    names = []
    for auto in PIPELINE_REGISTRY.supported_tasks.get(task, {}).get("pt", ()):
        if auto.__name__ in (getattr(config, "auto_map", None) or {}):
            names.append(auto.__name__)
        elif type(config) in auto._model_mapping:
            found = auto._model_mapping[type(config)]
            names += [one.__name__ for one in (found if isinstance(found, (list, tuple)) else [found])]
    return names
