"""Which blocks may share a process and a forward with others: an allow-list, checked before the block runs and again
at each of its steps.

A block that passes reads and writes module inputs and outputs, computes on tensors and prints. Its text is rewritten
so that every attribute, call and shown value goes through a `Guard`, which knows by the value's type what may be had
of it; whatever is not listed raises NotMergeable, and the job is run alone. So nothing here needs to be complete.
"""

import ast
import math
from collections.abc import Callable
from functools import partial
from types import CodeType, ModuleType
from typing import Any

import torch
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.tracer import InterleavingTracer
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

from interlace_workers.child.merging import allowed
from interlace_workers.child.merging.slab import NotMergeable

_MOST_TURNS = 10_000  # of one `range`
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_STATEMENTS = (
    ast.Module,
    ast.Expr,
    ast.Assign,
    ast.AugAssign,
    ast.For,
    ast.If,
    ast.Pass,
    ast.Break,
    ast.Continue,
    ast.Assert,
)
_EXPRESSIONS = (
    ast.Name,
    ast.Constant,
    ast.Attribute,
    ast.Subscript,
    ast.Slice,
    ast.Tuple,
    ast.List,
    ast.Dict,
    ast.Set,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.comprehension,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.IfExp,
    ast.Call,
    ast.keyword,
    ast.Starred,
    ast.JoinedStr,
    ast.FormattedValue,
)
_PARTS = (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)


def compiled(source: str, filename: str) -> CodeType:
    """A block's code, guarded. Raises NotMergeable for one that may do more than is known to be harmless."""
    try:
        tree = _Guarded().visit(ast.parse(source))
        return compile(ast.fix_missing_locations(tree), filename, "exec")
    except (SyntaxError, RecursionError, ValueError) as error:
        raise NotMergeable(f"the block does not compile: {error}") from None


class _Guarded(ast.NodeTransformer):
    """Puts every step of a block behind a guard. Raises NotMergeable."""

    def visit(self, node: ast.AST) -> Any:
        if not isinstance(node, (*_STATEMENTS, *_EXPRESSIONS, *_PARTS)):
            raise NotMergeable(f"{type(node).__name__} on line {getattr(node, 'lineno', '?')}")
        return super().visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id.startswith("_") and node.id != "_":
            raise NotMergeable(f"the name {node.id}")
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if node.attr.startswith("_"):
            raise NotMergeable(f"the attribute {node.attr}")
        owner = self.visit(node.value)
        if isinstance(node.ctx, ast.Load):
            return ast.copy_location(_call("_get", owner, ast.Constant(node.attr)), node)
        if node.attr not in ("output", "input"):
            raise NotMergeable(f"the attribute {node.attr} is set")
        return ast.copy_location(ast.Attribute(_call("_envoy", owner), node.attr, node.ctx), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        node.func = _call("_callable", node.func)
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        if node.arg not in allowed.KEYWORDS:
            raise NotMergeable(f"the keyword {node.arg}")
        return self.generic_visit(node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        self.generic_visit(node)
        node.value = _call("_shown", node.value)
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if isinstance(node.op, ast.Mod) and not isinstance(node.right, ast.Constant):
            raise NotMergeable("% may format")
        return self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        if node.is_async:
            raise NotMergeable("async")
        return self.generic_visit(node)


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


class Guard:
    """What one block can reach: the built-in names of its scope, and what each value lets it have.

    ``print_line`` takes its output; ``shared`` are the storages of the model's own weights.
    """

    def __init__(self, print_line: Callable[[str], None], shared: frozenset[int]) -> None:
        self._print_line = print_line
        self._shared = shared
        #: What was saved, by identity; held, so that no other object takes its place.
        self.saved: dict[int, Any] = {}
        #: The block's built-in names.
        self.names = allowed.BUILTINS | {
            "print": self._print,
            "range": _range,
            "str": self._str,
            "_get": self._get,
            "_envoy": _envoy,
            "_callable": self._callable,
            "_shown": _shown,
        }

    def _get(self, owner: Any, name: str) -> Any:
        """``owner.name``, if values of its type may be asked for it."""
        if isinstance(owner, Envoy):
            return _of_envoy(owner, name)
        if isinstance(owner, ModuleType):
            return self.save if (owner.__name__, name) == ("nnsight", "save") else of_module(owner, name)
        if name == "save":
            return partial(self.save, owner)
        if isinstance(owner, InterleavingTracer):
            names: Any = ("result", "stop")
        elif type(owner) is torch.Tensor:
            names = allowed.TENSOR
        elif isinstance(owner, ModelOutput):
            if name in owner:
                return owner[name]
            names = allowed.OF_TYPE[dict]
        elif isinstance(owner, PretrainedConfig):
            value = getattr(owner, name)
            if not isinstance(value, _PLAIN):
                raise NotMergeable(f"{name} of the configuration")
            return value
        elif type(owner).__module__ == "torch.return_types":
            names = allowed.RETURNED
        else:
            names = allowed.OF_TYPE.get(type(owner), ())
        if name not in names:
            raise NotMergeable(f"{name} of a {type(owner).__name__}")
        return getattr(owner, name)

    def save(self, value: Any) -> Any:
        """As ``value.save()`` in nnsight."""
        self.saved[id(value)] = value
        return value

    def _callable(self, what: Any) -> Any:
        if isinstance(what, Envoy):
            return partial(self._applied, what)
        if isinstance(what, type) and what not in allowed.TYPES:
            raise NotMergeable(f"a call of {what.__name__}")
        return what

    def _applied(self, envoy: Envoy, *args: Any, **kwargs: Any) -> Any:
        """A module run ad hoc. Its result must not be the model's own memory, which the block could write to."""
        result = envoy(*args, **kwargs)
        for value in result if isinstance(result, (list, tuple)) else [result]:
            if not isinstance(value, torch.Tensor) or value.untyped_storage().data_ptr() in self._shared:
                raise NotMergeable("a module gives something else than new tensors")
        return result

    def _print(self, *values: Any, sep: str = " ", end: str = "\n") -> None:
        self._print_line(sep.join(str(_shown(value)) for value in values) + end)

    def _str(self, value: Any = "") -> str:
        return str(_shown(value))


def of_module(module: ModuleType, name: str) -> Any:
    """What a block may have of an imported module. Raises NotMergeable."""
    value = getattr(module, name, None)
    if name in allowed.MODULES.get(module.__name__, ()) or isinstance(value, torch.dtype):
        return value
    if module is math and not name.startswith("_"):
        return value
    raise NotMergeable(f"{module.__name__}.{name}")


def _of_envoy(envoy: Envoy, name: str) -> Any:
    if name in ("output", "input", "inputs"):
        return getattr(envoy, name)
    child = envoy.__dict__.get(name)
    if isinstance(child, Envoy):
        return child
    if name == "config":
        return envoy._module.config
    raise NotMergeable(f"{name} of a module")


def _envoy(owner: Any) -> Envoy:
    if not isinstance(owner, Envoy):
        raise NotMergeable(f"an attribute of a {type(owner).__name__} is set")
    return owner


def _shown(value: Any) -> Any:
    """The value, unless its text would tell that the forward was shared: a tensor's names the last operation."""
    if isinstance(value, torch.Tensor):
        if value.grad_fn is not None:
            raise NotMergeable("a tensor is printed with its history")
    elif isinstance(value, dict):
        for one in value.values():
            _shown(one)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for one in value:
            _shown(one)
    elif not isinstance(value, (*_PLAIN, torch.dtype, torch.device, Envoy, slice, range)):
        raise NotMergeable(f"a {type(value).__name__} is printed")
    return value


def _range(*bounds: int) -> range:
    turns = range(*bounds)
    if len(turns) > _MOST_TURNS:
        raise NotMergeable("a long loop")
    return turns
