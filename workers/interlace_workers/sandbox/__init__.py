"""The layers around a child that runs user code, and their order: `Sandbox.seal` is the list.

The zygote calls `prepare` once, with the model loaded, then `fork` for each child; the child calls `seal` before
anything is known of its job, and `limit` when the job is known, before the first byte of its payload is read.
"""

import errno
import json
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial

from interlace_workers.sandbox import jail, landlock, namespaces, privileges, process, rlimits, seccomp

#: Every layer, in the order in which it is put on.
LAYERS = (
    "jail root",
    "process id namespace",
    "own session",
    "parent death",
    "descriptors",
    "rlimits",
    *namespaces.OWN,
    "own user id",
    "user namespace",
    "no capabilities",
    "not dumpable",
    "no new privileges",
    "landlock",
    "seccomp",
)
#: Kept with `isolation: none`: they guard the service against accidents.
ALWAYS = ("own session", "parent death", "descriptors", "rlimits")
#: Without one of these a job is not cut off; what the others add, these give by other means, less deeply.
ESSENTIAL = (*ALWAYS, "no capabilities", "not dumpable", "no new privileges", "landlock", "seccomp")


#: With one of these the kernel counts a child's threads apart from those of the service's account.
_OWN_USER = {"own user id", "user namespace"}


class Unsafe(Exception):
    """The kernel does not give a layer that `isolation: required` needs; the message names it."""


class Sandbox:
    """What one zygote needs to put each child behind every layer that the kernel gives."""

    def __init__(self, isolation: str, hidden: str, without: Sequence[str] = ()) -> None:
        """``hidden`` must not be readable to children; ``without`` names layers to leave out, for tests."""
        self._isolation = isolation
        self._hidden = hidden
        self._active = [name for name in (ALWAYS if isolation == "none" else LAYERS) if name not in without]
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._me = os.getpid()
        self._rules = -1
        self._process_ids = namespaces.ProcessIds()
        self._user_ids = privileges.UserIds()
        #: Layer -> why it is missing.
        self.missing: dict[str, str] = {}

    @property
    def layers(self) -> list[str]:
        """The layers that every child has."""
        return list(self._active)

    def prepare(self) -> None:
        """Put the zygote into its jail and try every layer in a child. Raises Unsafe.

        A layer that fails here is left out from now on, one that works must work in every child.
        """
        if self._isolation == "none":
            return
        readable = jail.libraries(self._hidden)
        if not privileges.may_administer():
            self._miss("process id namespace", "the service runs without CAP_SYS_ADMIN")
            self._try("user namespace", namespaces.root_of_own)
        self._try("jail root", lambda: jail.enter(readable))
        self._try("landlock", lambda: self._set_rules(readable))
        for name, reason in self._rehearse().items():
            self._miss(name, reason)
        lacking = [f"{name} ({self.missing[name]})" for name in ESSENTIAL if name in self.missing]
        if lacking and self._isolation == "required":
            raise Unsafe(
                f"`isolation: required`, and this machine does not give: {', '.join(lacking)}. `interlace doctor` says "
                "more; `isolation: available` hosts without, for people that you trust."
            )

    def fork(self) -> int:
        """As os.fork, into a process id namespace of its own where that is had."""
        return self._process_ids.fork() if "process id namespace" in self._active else os.fork()

    def memory(self) -> int:
        """A descriptor that shows how much memory the calling process holds, to whoever has it."""
        return os.open("self/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)

    def seal(self, end: int, slot: int) -> int:
        """Put this child, just forked, behind every layer. Raises OSError: then nothing may run in it.

        Of its descriptors it keeps ``end``. Returns the bytes of its address space. No two living children share a
        ``slot``.
        """
        space = rlimits.address_space(self._proc)
        for _, put_on in self._steps(slot, end):
            put_on()
        return space

    def _steps(self, slot: int, *keep: int) -> list[tuple[str, Callable[[], object]]]:
        """The layers of a child, in the order in which they go on."""
        kept = [fd for fd in (*keep, self._rules) if fd >= 0]
        spaces = [name for name in namespaces.OWN if name in self._active]
        steps: list[tuple[str, Callable[[], object]]] = [
            ("own session", process.own_session),
            ("parent death", lambda: process.die_with(self._me)),
            ("descriptors", lambda: process.close_all_but(*kept)),
            *((name, partial(namespaces.enter, name)) for name in spaces),
            ("own user id", lambda: privileges.become(self._user_ids.of(self._me, slot))),
            ("user namespace", namespaces.own_user),
            ("rlimits", lambda: rlimits.at_fork(own_user=bool(_OWN_USER & set(self._active)))),
            ("no capabilities", privileges.drop_capabilities),
            ("not dumpable", process.not_dumpable),
            ("no new privileges", privileges.no_new_privileges),
            ("parent death", lambda: process.die_with(self._me)),  # a change of user has cleared it
            ("landlock", lambda: landlock.restrict(self._rules)),
            ("landlock", lambda: os.close(self._rules)),
            ("seccomp", lambda: seccomp.install(os.getpid())),
        ]
        return [step for step in steps if step[0] in self._active]

    def _rehearse(self) -> dict[str, str]:
        """Try every layer in a child; returns those that failed, with the reason."""
        said, say = os.pipe2(os.O_CLOEXEC)
        try:
            pid = self.fork()
        except OSError as error:
            self._miss("process id namespace", str(error))
            pid = self.fork()
        if pid == 0:
            os.write(say, json.dumps(self._attempt(say)).encode())
            os._exit(0)
        os.close(say)
        with open(said, "rb") as file:
            text = file.read()
        os.waitpid(pid, 0)
        failed: dict[str, str] = json.loads(text) if text else dict.fromkeys(self._active, "the child ended")
        return failed

    def _attempt(self, say: int) -> dict[str, str]:
        failed = {}
        for name, put_on in self._steps(0, say):
            try:
                put_on()
            except OSError as error:
                failed[name] = error.strerror or str(error)
        if "own user id" in self._active and not (os.access(os.__file__, os.R_OK) and os.access(__file__, os.R_OK)):
            failed.setdefault("own user id", "the installed libraries are not readable for other users")
        for name, breaks_out in (("landlock", _opens_a_file), ("seccomp", _opens_a_socket)):
            if name in self._active and name not in failed and breaks_out():
                failed[name] = "it is on, and does not hold"
        return failed

    def _set_rules(self, readable: Sequence[str]) -> None:
        self._rules = landlock.ruleset([*readable, *jail.DEVICES], jail.DEVICES[:1])

    def _try(self, name: str, put_on: Callable[[], object]) -> None:
        if name in self._active:
            try:
                put_on()
            except OSError as error:
                self._miss(name, error.strerror or str(error))

    def _miss(self, name: str, reason: str) -> None:
        if name in self._active:
            self._active.remove(name)
            self.missing[name] = reason


def limit(space: int, memory_bytes: int, file_bytes: int, cpu_seconds: float) -> None:
    """Bound what the kernel can bound of one job. Raises OSError if it refuses: then nothing may run."""
    rlimits.memory(space, memory_bytes)
    rlimits.file_size(file_bytes)
    rlimits.cpu(cpu_seconds)


def _opens_a_file() -> bool:
    try:
        os.close(os.open("/", os.O_RDONLY))
    except OSError:
        return False
    return True


def _opens_a_socket() -> bool:
    try:
        socket.socket().close()
    except OSError as error:
        return error.errno != errno.EPERM
    return True
