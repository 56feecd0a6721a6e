"""Which blocks may share a forward: many that may, and many that may not, each by itself in the guarded scope."""

import pytest
import torch
from nnsight.modeling.base import NNsight

from interlace_workers.child.merging.plain import Guard, compiled
from interlace_workers.child.merging.slab import Foreign, NotMergeable, Slab


def execute(block: str) -> tuple[dict[str, object], list[str]]:
    """Run a block on a few values; returns its names and what it printed."""
    lines: list[str] = []
    guard = Guard(lines.append, frozenset())
    names = {
        "x": torch.arange(6.0).reshape(2, 3),
        "leaf": torch.ones(2, requires_grad=True),
        "d": {"a": [1, 2]},
        "torch": torch,
        "F": torch.nn.functional,
        "model": NNsight(torch.nn.Sequential(torch.nn.Linear(3, 3))),
        "foreign": Foreign(),
        "__builtins__": guard.names,
    }
    exec(compiled(block, "block"), names)
    return names | {"saved": list(guard.saved.values())}, lines


@pytest.mark.parametrize(
    "block",
    [
        "y = (x * 2 + 1).save()",
        "y = x[:, -1].clone()\ny += 3\nx[0, 1:] = 0",
        "y = torch.stack([row.softmax(dim=-1) for row in x])",
        "y = F.gelu(torch.einsum('ab,cb->ac', x, x))",
        "for number, row in enumerate(x):\n    if number == 1:\n        continue\n    y = row.norm()",
        "values, indices = x.topk(2)\ny = x.topk(k=2, dim=-1).indices",
        "y = {key: len(value) for key, value in d.items()}\nd['b'] = list(range(3))",
        "y = x.argmax(dim=-1).tolist() if x.shape[0] > 1 else None",
        "y = x.to(torch.float64).mean().item()",
        "assert isinstance(x, torch.Tensor)\ny = sum([1, 2]) + max(3, 4)",
        "print('a', x.shape, x)\nprint(f'{x.sum().item():.2f}', end='')",
        "x.mul_(0).add_(1)",
        "y = [*d['a'], *(1, 2)]\ny.append(None)\ny = ', '.join(['a', 'b'])",
        "_ = torch.linalg.norm(x)",
        "y = 7 % 3\ny = x % 2",
    ],
)
def test_plain_computation_may_share(block: str) -> None:
    execute(block)


@pytest.mark.parametrize(
    "block",
    [
        "import os",
        "from torch import nn",
        "def f():\n    pass",
        "class A:\n    pass",
        "f = lambda: 1",
        "try:\n    pass\nexcept Exception:\n    pass",
        "while True:\n    pass",
        "with torch.no_grad():\n    pass",
        "global x",
        "del x",
        "async def f():\n    pass",
        "y = (z := 3)",
        "x.__class__",
        "y = x._base",
        "__import__('os')",
        "_get = 3",
        "y = ().__class__.__mro__",
        "x.as_strided((9,), (1,))",
        "x.set_(x)",
        "x.data_ptr()",
        "x.untyped_storage()",
        "x.storage()",
        "x.data",
        "x.numpy()",
        "x.resize_(9)",
        "x.random_()",
        "x.normal_()",
        "x.grad",
        "x.requires_grad_()",
        "x.register_hook(print)",
        "leaf.sum().backward()",
        "torch.manual_seed(1)",
        "torch.rand(3)",
        "torch.randn_like(x)",
        "torch.set_grad_enabled(False)",
        "torch.set_default_dtype(torch.float64)",
        "torch.save(x, 'f')",
        "torch.load('f')",
        "torch.empty(3)",
        "torch.compile",
        "torch.Tensor(3)",
        "torch.ops",
        "torch.utils",
        "torch.autograd",
        "torch.add(x, x, out=x)",
        "torch.multinomial(x, 1)",
        "F.dropout(x)",
        "x.bernoulli()",
        "open('f')",
        "eval('1')",
        "exec('1')",
        "getattr(x, 'data')",
        "setattr(x, 'a', 1)",
        "globals()",
        "vars(x)",
        "type(x)",
        "x.real = 3",
        "x.foo = 3",
        "torch.foo = 3",
        "model[0].weight = 3",
        "y = model[0].weight",
        "model.train()",
        "model.to(torch.float64)",
        "model[0].float()",
        "model[0].parameters()",
        "model.tokenizer",
        "y = model[0].source",
        "model[0].skip(x)",
        "model[0](x, hook=True)",
        "y = '{0.__class__}'.format(x)",
        "y = 'a %s' % x",
        "print(x * leaf.sum())",
        "print([leaf * 2])",
        "y = f'{leaf * 2}'",
        "y = str(leaf * 2)",
        "print('a', file=x)",
        "print(**d)",
        "for _ in range(100_000):\n    pass",
        "y = foreign + 1",
        "y = torch.add(x, foreign)",
        "y = x * foreign",
        "y = foreign.shape",
        "y = foreign[0]",
        "y = [*foreign]",
        "y = 1 if foreign else 2",
        "y = isinstance(foreign, torch.Tensor)",
        "y = foreign == 1",
        "print(foreign)",
        "y = f'{foreign}'",
        "y = len(foreign)",
    ],
)
def test_what_may_touch_others_does_not_share(block: str) -> None:
    with pytest.raises((NotMergeable, NameError)):
        execute(block)


def test_what_it_prints_and_saves_is_its_own() -> None:
    names, lines = execute("print('a', 1, sep='-')\nprint('b', end='')\ny = (x + 1).save()\nz = d['a'].save()")
    assert "".join(lines) == "a-1\nb"
    assert names["saved"] == [names["y"], names["d"]["a"]]  # type: ignore[index]


def slab(rows: int) -> Slab:
    return Slab(NNsight(torch.nn.Linear(2, 2)), rows)


def test_a_job_is_served_its_rows_and_nothing_else() -> None:
    value = (torch.arange(10).reshape(5, 2), {"mask": torch.ones(1, 2), "cache": object(), "none": None, "many": 5})
    rows, rest = slab(5).narrow(value, [1, 2])
    assert rows.tolist() == [[2, 3], [4, 5]]
    assert [type(one) is Foreign for one in rest.values()] == [True, True, False, True]


def test_an_edit_replaces_its_rows_and_only_by_its_like() -> None:
    full = torch.zeros(5, 2)
    divided = slab(5)
    spliced = divided.widen((full, None), [1, 2], (torch.ones(2, 2), None))
    assert spliced[0].tolist() == [[0, 0], [1, 1], [1, 1], [0, 0], [0, 0]]
    for edited in (torch.ones(1, 2), torch.ones(2, 3), torch.ones(2, 2, dtype=torch.float64), 3, None, [1, 2]):
        with pytest.raises(NotMergeable):
            divided.widen(full, [1, 2], edited)
    with pytest.raises(NotMergeable):
        divided.widen((full, None), [1, 2], (torch.ones(2, 2), 1))
    with pytest.raises(NotMergeable):
        divided.widen(torch.zeros(1, 2), [1, 2], torch.ones(1, 2))


def test_what_was_edited_in_place_stays_where_it_is() -> None:
    full = torch.zeros(5, 2)
    divided = slab(5)
    rows = divided.narrow(full, [3, 1])
    rows += 1
    assert divided.widen(full, [3, 1], rows) is full
    assert full[3].tolist() == [1, 1]
