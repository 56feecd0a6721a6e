"""Promise: whatever a job does to the weights, by whatever door, it does to its own copy."""

from typing import Any

import pytest
from hostile import Attack

#: Each door spoils the weights of the job itself: that is shown, so that the door is known to be one.
DOORS = {
    "data": "for p in weights: p.data.zero_()",
    "no_grad": "with torch.no_grad():\n    for p in weights: p.mul_(-1)",
    "detach": "for p in weights: p.detach().fill_(1)",
    "storage": "for p in weights: p.untyped_storage().fill_(0)",
    "set_": "with torch.no_grad():\n    for p in weights: p.set_(torch.zeros_like(p))",
    "another data": "for p in weights: p.data = torch.zeros_like(p)",
    "memmove": "for p in weights: ctypes.memmove(p.data_ptr(), bytes(p.nbytes), p.nbytes)",
    "memset": "for p in weights: ctypes.memset(p.data_ptr(), 0x3C, p.nbytes)",
    "numpy": "for p in weights: p.detach().numpy()[...] = 0",
    "dlpack": "for p in weights: torch.from_dlpack(p.detach()).zero_()",
    "state dict": "module.load_state_dict({k: torch.zeros_like(v) for k, v in module.state_dict().items()})",
    "state dict's values": "for v in module.state_dict().values(): v.zero_()",
    "tied weights": "module.lm_head.weight.data.zero_()\nassert module.transformer.wte.weight.abs().sum() == 0",
    "renorm": "torch.nn.functional.embedding(torch.arange(400), weights[0].detach(), max_norm=1e-3)",
    "as_strided": "for p in weights: p.detach().as_strided((p.numel(),), (1,)).zero_()",
    "beyond its end": "t = weights[1]\nt.detach().view(-1)\nctypes.memset(t.data_ptr() - 8, 0x3C, t.nbytes + 16)",
    "foreach": "torch._foreach_zero_([p.detach() for p in weights])",
    "optimizer": "import torch.optim\nfor p in weights: p.requires_grad_(True); p.grad = torch.ones_like(p)\n"
    "torch.optim.SGD(weights, lr=9.0).step()",
    "init": "for p in weights: torch.nn.init.normal_(p)",
    "half": "module.half()",
    "new layers": "del module.transformer.h[1:]\nmodule.transformer.wte = torch.nn.Embedding(400, 64)\n"
    "weights = list(module.parameters())",
    "unmapped and mapped again": "page = 4096\np = weights[0]\nstart = p.data_ptr() // page * page\n"
    "libc.mmap.restype = ctypes.c_void_p\n"
    "libc.mmap(ctypes.c_void_p(start), ctypes.c_size_t(page * 2), 3, 0x32, -1, ctypes.c_long(0))",
    "given back to the kernel": "p = weights[0]\nstart = p.data_ptr() // 4096 * 4096\n"
    "checked(libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(p.nbytes // 4096 * 4096), 4))",
}
_SOURCE = """
module = model._module
weights = list(module.parameters())
def digest():
    return [(tuple(p.shape), p.dtype, p.untyped_storage().nbytes(), p.detach().double().sum().item()
             if p.untyped_storage().nbytes() else 0) for p in module.parameters()]
before = digest()
scope = {"torch": torch, "ctypes": ctypes, "module": module, "weights": weights, "libc": libc, "checked": checked}
exec(door, scope)
attempt("spoiled its own", lambda: digest() != before)
"""
ATTACKS = [
    Attack(name, f"door = {door!r}\n{_SOURCE}", reports={"spoiled its own": "got True"}) for name, door in DOORS.items()
]
ATTACKS += [
    Attack("resize_", "for p in model._module.parameters(): p.untyped_storage().resize_(0)", fails="not resizable"),
    Attack(
        "buffers and settings",
        """
module = model._module
for buffer in module.buffers():
    buffer.zero_()
module.register_buffer("planted", torch.ones(4))
for layer in module.modules():
    if hasattr(layer, "eps"):
        layer.eps = 1e9
module.config.n_head = 1
module.train()
module.transformer.h[1].register_forward_hook(lambda layer, inputs, output: output * 0)
torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
attempt("set", lambda: module.training)
""",
        reports={"set": "got True"},
    ),
    Attack(
        "thrown away with MADV_REMOVE",
        """
p = next(model._module.parameters())
start = p.data_ptr() // 4096 * 4096
attempt("removed", lambda: checked(libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(4096), 9)))
attempt("shared", lambda: model._module.share_memory())
""",
        {"EINVAL", "EPERM", "EACCES"},
        reports={"shared": r"(EPERM|EACCES|ENOENT|EROFS|RuntimeError.*)"},
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_only_its_own(siege: Any, attack: Attack) -> None:
    siege.run(attack)
