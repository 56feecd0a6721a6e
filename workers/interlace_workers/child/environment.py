"""What a request wants of the model itself, put in place before its payload is read: adapters, the attention."""

from collections.abc import Sequence
from typing import Any

from interlace.protocol.errors import InvalidRequest
from interlace_workers.child import adapter
from interlace_workers.child.loading.model import HostedModel
from interlace_workers.order import Order

#: What transformers has, and may have for this model on this machine.
_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")


def prepare(model: HostedModel, order: Order, fds: Sequence[int]) -> HostedModel:
    """The model as this request has it. Raises InvalidRequest for what it cannot have."""
    model = adapter.apply(model, order.adapters, fds)
    _set_attention(model.model, order.env.get("attn_implementation"))
    return model


def _set_attention(model: Any, name: str | None) -> None:
    """Raises InvalidRequest, which lists what this model can run with."""
    current = getattr(model, "attn_implementation", None)
    if name is None or name == current or not hasattr(model._module, "set_attn_implementation"):
        return
    try:
        model._remoteable_set_env({"attn_implementation": name, "peft": model.peft})
    except Exception as error:  # noqa: BLE001 - transformers raises all kinds for what is not installed or not possible
        possible = [one for one in _ATTENTION if one == current or _can_set(model._module, one)]
        raise InvalidRequest(
            f"{type(model._module).__name__} cannot run with `attn_implementation={name!r}` on this server; possible: "
            f"{', '.join(possible)}. {_first_line(error)}"
        ) from None


def _can_set(module: Any, name: str) -> bool:
    try:
        module.set_attn_implementation(name)
    except Exception:  # noqa: BLE001 - of all kinds, as above
        return False
    return bool(module.config._attn_implementation == name)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
