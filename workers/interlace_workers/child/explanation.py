"""What the user reads of an error: their own frames, and what can be done about it."""

import difflib
import os
import traceback
from collections.abc import Iterator
from types import FrameType, TracebackType

import nnsight
import torch
from nnsight.intervention.envoy import Envoy
from nnsight.tracing.util import clean_traceback, filter_traceback

from interlace.protocol.errors import InterlaceError

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: How a module is called: two frames for each module on the way, which say nothing.
_CALLS = (torch.nn.Module._call_impl.__code__, torch.nn.Module._wrapped_call_impl.__code__)
#: Frames of these are nobody's own code.
_INSTALLED = ("-packages/", os.path.dirname(os.__file__))
_HERE = os.path.dirname(nnsight.__file__)
_MANY = 12  # children of a module that a message names
_OVER_MEMORY = (
    "The job is over its memory limit{limit}. Save or hold less at a time, trace under `with torch.no_grad():` inside "
    "a `model.session(remote=True)` if you need no gradients, or ask the operator to raise `limits.memory_bytes`."
)
_CUT_OFF = (
    "A job can read the installed libraries and nothing else: it has no files, no network, no other processes and no "
    "memory to share with them. Bring what it needs in variables of your own code, and `.save()` what it makes."
)
_NO_GPU = (
    'The model is on a processor here: leave `.cuda()` and `device="cuda"` out, or take the device of a value of the '
    "model's, as in `x.to(LAYER.output.device)`."
)
#: What a traceback holds -> what its reader can do.
_HINTS = {
    "MemoryError": _OVER_MEMORY,
    "can't allocate memory": _OVER_MEMORY,
    "Operation not permitted": _CUT_OFF,
    "Permission denied": _CUT_OFF,
    "No such file or directory": _CUT_OFF,
    "Read-only file system": _CUT_OFF,
    "in name resolution": _CUT_OFF,
    "Name or service not known": _CUT_OFF,
    "Network is unreachable": _CUT_OFF,
    "No module named": (
        "The server does not have this Python module. `nnsight.compare()` lists what it has; a file of your own is "
        "sent along if you import it outside of the block."
    ),
    "outside of interleaving": (
        "Nothing ran that has this value: the trace got no input. Give it one (text, token ids; a pipeline a prompt), "
        "or open `with tracer.invoke(...):` in it."
    ),
    "the model already ran past it": (
        "A block reads values in the order in which the model computes them. Put this line before those of later "
        "modules, or into a `with tracer.invoke(...):` of its own."
    ),
    "too many indices for tensor": (
        "Of most models a layer's `.output` is a tensor, not a tuple, and `.output[0]` the first prompt's part of it: "
        "`print(type(LAYER.output))` in the block tells."
    ),
    "Torch not compiled with CUDA enabled": _NO_GPU,
    "Found no NVIDIA driver": _NO_GPU,
    "No CUDA GPUs are available": _NO_GPU,
    "__class__ cell not found": (
        "nnsight sends functions as source, and `super()` without arguments does not survive that: write "
        "`super(YourClass, self)` in classes that a remote trace uses."
    ),
}


def explain(error: BaseException, memory_bytes: int = 0) -> str:
    """The traceback that the user reads: their frames, none of ours and none of nnsight's; then what can be done.

    ``memory_bytes``: the job's limit; 0 for none.
    """
    if isinstance(error, InterlaceError):
        return str(error)
    whole = getattr(error, "__intervention_tb__", None) or error.__traceback__
    stack = filter_traceback(clean_traceback(whole), _is_shown)
    error.__context__ = None
    text = "".join(traceback.format_exception(type(error), error, stack)).rstrip()
    limit = f" of {memory_bytes / 2**30:.3g} GiB" if memory_bytes else ""
    hints = dict.fromkeys(hint.replace("{limit}", limit) for sign, hint in _HINTS.items() if sign in text)
    return "\n\n".join([text, *filter(None, (_what_there_is(error), _where(whole))), *hints])


def _is_shown(frame: FrameType) -> bool:
    """Whether a frame is neither ours nor of nnsight, of which some travels as source with the client's path."""
    name = frame.f_code.co_filename
    return not name.startswith(_OURS) and "-packages/nnsight/" not in name and frame.f_code not in _CALLS


def _what_there_is(error: BaseException) -> str:
    """Of a module that is not there: what its parent has."""
    there, asked = getattr(error, "obj", None), getattr(error, "name", None)
    if type(error) is not AttributeError or not isinstance(there, Envoy) or not isinstance(asked, str):
        return ""
    names = list(getattr(there.__dict__.get("_module"), "_modules", ()))
    if not names:
        return ""
    if all(name.isdigit() for name in names):
        return f"`{there.path}` has the modules {names[0]} to {names[-1]}."
    near = difflib.get_close_matches(asked, names, 1)
    meant = f"Did you mean `{near[0]}`? " if near else ""
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return f"{meant}`{there.path}` has the modules {', '.join(names[:_MANY])}{more}."


def _where(stack: TracebackType | None) -> str:
    """Of an error that no line of the user's raised: the module that did, and what it was given."""
    frames = list(_frames(stack))
    if any(_is_own(frame) for frame in frames):
        return ""
    calls = [frame for frame in frames if frame.f_code is _CALLS[0]]
    if not calls:
        return ""
    root, inner = (calls[at].f_locals["self"] for at in (0, -1))
    path = next((name for name, module in root.named_modules() if module is inner), "")
    given = [*calls[-1].f_locals.get("args", ()), *calls[-1].f_locals.get("kwargs", {}).values()]
    shapes = [list(value.shape) for value in given if isinstance(value, torch.Tensor)]
    said = "No line of your block raised this: the model's own forward did"
    said += f", in `{path}`" if path else ""
    said += f", which was given {' and '.join(map(str, shapes))}" if shapes else ""
    if any(0 in shape for shape in shapes):
        return f"{said}: a tensor without elements. Has your prompt any tokens?"
    return f"{said}. Look at the input of the trace, and at what your block put in before."


def _frames(stack: TracebackType | None) -> Iterator[FrameType]:
    while stack is not None:
        yield stack.tb_frame
        stack = stack.tb_next


def _is_own(frame: FrameType) -> bool:
    """Whether a frame is the user's code."""
    name = frame.f_code.co_filename
    return not name.startswith((_OURS, _HERE, "<frozen")) and not any(part in name for part in _INSTALLED)
