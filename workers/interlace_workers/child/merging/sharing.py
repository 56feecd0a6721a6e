"""What of a model decides whether its values can be divided by rows, and into which batch."""

from collections.abc import Iterator
from typing import Any

from interlace_workers.child.loading.model import HostedModel
from interlace_workers.weights import shape


def why_alone(model: HostedModel) -> str | None:
    """Why no trace of the model may share a forward; None where they may.

    An expert sees the tokens that are sent to it: as many as there happen to be, of any row. And where a token is sent
    is a choice, which the last digits of a larger batch can turn.
    """
    if getattr(model.model._module, "is_loaded_in_8bit", False):
        return "its weights have 8 bits: which inputs are multiplied in 16 is decided over all rows"
    for name, value in _numbers(model.model._module.config.to_dict()):
        if "expert" in name and value > 1:
            return f"the model has experts ({name}: {value})"
    return None


def dimensions(model: HostedModel) -> frozenset[int]:
    """Every size that the model has and that a batch must not be mistaken for."""
    module = model.model._module
    found = {1}
    for tensor in [*module.parameters(), *module.buffers()]:
        found.update(shape(tensor))
    config = module.config.to_dict()
    found.update(value for _, value in _numbers(config))
    for one in (config, *(value for value in config.values() if isinstance(value, dict))):
        heads, width = one.get("num_attention_heads"), one.get("hidden_size")
        if type(heads) is int and type(width) is int and heads > 0:
            found.add(width // heads)
    return frozenset(found)


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration and of those inside it, with its name."""
    for name, value in config.items():
        if type(value) is int:
            yield name, value
        elif isinstance(value, dict) and name != "label2id":
            yield from _numbers({str(key): one for key, one in value.items()})
