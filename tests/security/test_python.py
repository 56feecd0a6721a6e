"""Promise: what a job does to Python, torch and nnsight, and what it leaves running there, ends with it."""

import time
from typing import Any

import psutil
import pytest
from gateway_process import until
from hostile import Attack

_DONE = {"done": "got True"}


def _done(name: str, source: str) -> Attack:
    return Attack(name, source + '\nattempt("done", lambda: True)', reports=_DONE)


ATTACKS = [
    _done(
        "torch",
        """
torch.nn.functional.layer_norm = lambda value, *rest, **named: value * 0
torch.Tensor.softmax = torch.Tensor.matmul = torch.load = None
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.manual_seed(7)
torch.set_num_threads(7)
torch.use_deterministic_algorithms(True)
torch.backends.mkldnn.enabled = False
torch.set_flush_denormal(True)
torch.set_float32_matmul_precision("medium")
torch.autograd.set_detect_anomaly(True)
""",
    ),
    _done(
        "nnsight",
        """
import nnsight
from nnsight.schema.request import RequestModel
RequestModel.deserialize = staticmethod(lambda *_: 1 / 0)
nnsight.Envoy = nnsight.CONFIG = None
for name in list(sys.modules):
    if name.startswith("nnsight.intervention"):
        vars(sys.modules[name]).pop("Interleaver", None)
model.tokenizer.padding_side = "right"
model.tokenizer.add_tokens(["Tower"])
""",
    ),
    _done(
        "the worker's own modules",
        """
def answer(*arguments, **named):
    return b"planted"
kept = ("write", "encode", "run", "_tell", "_close_logs", "_wait_for_the_end")
writing = ("interlace_workers.child.writing.output", "interlace_workers.child.writing.packing")
for name, module in list(sys.modules.items()):
    if name.startswith("interlace") and name not in writing:
        for word, value in list(vars(module).items()):
            if callable(value) and not issubclass(type(value), type) and word not in kept:
                setattr(module, word, answer)
""",
    ),
    _done(
        "hooks of the interpreter",
        """
import atexit, gc, threading, weakref
sys.settrace(lambda *_: None)
sys.setprofile(lambda *_: None)
threading.setprofile(lambda *_: None)
sys.meta_path.insert(0, type("Finder", (), {"find_spec": staticmethod(lambda *_: None)}))
sys.addaudithook(lambda *_: None)
gc.callbacks.append(lambda *_: None)
atexit.register(lambda: __import__("time").sleep(600))
sys.excepthook = threading.excepthook = None
class Clinging:
    def __del__(self):
        while True:
            pass
keep = Clinging()
weakref.finalize(keep, lambda: __import__("time").sleep(600))
sys.setrecursionlimit(10**6)
sys.setswitchinterval(1000)
os.environ.clear()
os.umask(0)
""",
    ),
    Attack(
        "builtins",
        """
import builtins
attempt("done", lambda: True)
builtins.isinstance = lambda *_: False
builtins.len = lambda thing: 0
sys.modules.clear()
""",
        fails=".",
    ),
    Attack(
        "an output that never flushes",
        """
class Endless:
    def write(self, text): return len(text)
    def flush(self):
        while True: pass
sys.stdout = sys.stderr = Endless()
""",
        fails="limits.wall_seconds",
    ),
    _done(
        "threads that go on",
        """
import threading, time
def hog():
    while True:
        sum(range(10_000))
        time.sleep(0.001)
for _ in range(3):
    threading.Thread(target=hog, daemon=False).start()
threading.Timer(0.5, lambda: model._module.lm_head.weight.data.zero_()).start()
""",
    ),
    _done(
        "timers and signals",
        """
import signal
for number in set(range(1, 65)) - {9, 19, 32, 33}:
    libc.signal(number, ctypes.c_void_p(1))
signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 65)) - {32, 33})
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
""",
    ),
    Attack(
        "an exception that cannot be told",
        """
class Wrong(Exception):
    def __str__(self):
        while True: pass
    __repr__ = __str__
raise Wrong
""",
        fails="limits.wall_seconds",
    ),
    Attack("an exception of many words", 'raise RuntimeError("x" * (32 << 20))', fails="x{1000}"),
    Attack(
        "exceptions in a ring",
        """
one, two = ValueError("one"), ValueError("two")
one.__cause__, two.__cause__ = two, one
raise one
""",
        fails="ValueError",
    ),
    Attack(
        "an exception with the secret's path",
        'raise RuntimeError(open(paths["secret"]).read())',
        fails="FileNotFoundError",
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_ends_with_it(siege: Any, attack: Attack) -> None:
    siege.run(attack)


def test_nothing_runs_on(siege: Any) -> None:
    """The service has as many processes as before, and none of them works."""
    before = _settled(siege)
    for attack in ATTACKS:
        if attack.name in ("threads that go on", "timers and signals"):
            siege.run(attack)
    until(lambda: len(_family(siege)) <= before, "the jobs' processes are gone")


def _settled(siege: Any) -> int:
    """How many processes there are once none comes or goes for a second: the next job's is forked ahead."""
    looks: list[int] = []

    def steady() -> bool:
        looks.append(len(_family(siege)))
        time.sleep(0.1)
        return len(looks) > 10 and len(set(looks[-10:])) == 1

    until(steady, "processes that stay")
    return looks[-1]


def _family(siege: Any) -> list[psutil.Process]:
    return psutil.Process(siege.target.server.process.pid).children(recursive=True)
