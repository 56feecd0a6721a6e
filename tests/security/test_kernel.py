"""Promise: of the kernel a job has memory, threads, clocks and its own pipes, whatever number it calls."""

import platform
from typing import Any

import pytest
from hostile import DENIED, UNSEEN, Attack

from interlace_workers.sandbox.syscalls import ALLOWED, CHECKED

_COLUMN = int(platform.machine() == "aarch64")
_LISTED = sorted(number for columns in (ALLOWED | CHECKED).values() if (number := columns[_COLUMN]) is not None)
_MOST = 470  # above the newest call's number
#: x86-64's uretprobe and uprobe, which the kernel keeps from every filter; it kills whoever calls them by hand.
_UNFILTERED = {335, 336} if platform.machine() == "x86_64" else set()


def _calls(*lines: str) -> str:
    return "\n".join(f"attempt_call({line})" for line in lines)


ATTACKS = [
    Attack(
        "every other call",
        f"""
listed = set({_LISTED}) | set({sorted(_UNFILTERED)})
for number in set(range({_MOST})) - listed:
    attempt(str(number), call, number, 0, 0, 0, 0, 0, 0)
""",
    ),
    Attack(
        "numbers of another interface",
        """
for number in (0x40000000 + 41, 0x40000000 + 59, 0x40000000 + 520, 1 << 20, -2):
    attempt(str(number), call, number, 0, 0, 0)
""",
    ),
    Attack(
        "other processes' memory",
        _calls(
            '"ptrace", 16, 1, 0, 0',
            '"ptrace", 0, 0, 0, 0',
            '"process_vm_readv", 1, 0, 0, 0, 0, 0',
            '"process_vm_writev", 1, 0, 0, 0, 0, 0',
            '"kcmp", 1, 1, 0, 0, 0',
            '"pidfd_open", 1, 0',
            '"pidfd_getfd", 0, 0, 0',
            '"process_madvise", 0, 0, 0, 0, 0',
            '"move_pages", 1, 0, 0, 0, 0, 0',
            '"migrate_pages", 1, 0, 0, 0',
            '"userfaultfd", 0',
            '"perf_event_open", 0, -1, 0, -1, 0',
        ),
    ),
    Attack(
        "keys, programs and rings of the kernel",
        _calls(
            '"keyctl", 0, -3, 0',
            '"add_key", b"user", b"x", b"y", 1, -4',
            '"request_key", b"user", b"x", 0, -4',
            '"bpf", 0, 0, 0',
            '"io_uring_setup", 8, 0',
            '"io_uring_enter", 0, 0, 0, 0, 0, 0',
            '"io_uring_register", 0, 0, 0, 0',
            '"seccomp", 0, 0, 0',
            '"landlock_create_ruleset", 0, 0, 1',
            '"memfd_secret", 0',
            '"init_module", 0, 0, 0',
            '"finit_module", 0, 0, 0',
            '"delete_module", 0, 0',
        ),
    ),
    Attack(
        "mounts and namespaces",
        _calls(
            '"mount", b"proc", b"/usr", b"proc", 0, 0',
            '"umount2", b"/usr/lib", 2',
            '"pivot_root", b".", b"."',
            '"chroot", b"/usr/lib"',
            *(f'"unshare", {flag:#x}' for flag in (0x20000, 0x10000000, 0x40000000, 0x20000000)),
            '"setns", 0, 0',
            '"open_tree", -100, b"/", 1',
            '"move_mount", 0, b"", 0, b"", 4',
            '"fsopen", b"tmpfs", 0',
            '"fsmount", 0, 0, 0',
            '"fspick", -100, b"/", 0',
            '"mount_setattr", 0, b"", 0, 0, 0',
        ),
    ),
    Attack(
        "privileges",
        _calls(
            '"setuid", 0',
            '"setgid", 0',
            '"setresuid", 0, 0, 0',
            '"setgroups", 0, 0',
            '"setfsuid", 0',
            '"capset", 0, 0',
            '"personality", 0x40000',
            '"iopl", 3',
            '"ioperm", 0, 1, 1',
            '"modify_ldt", 0, 0, 0',
        ),
    ),
    Attack(
        "its own restraints",
        """
for name, option, value in (("dumpable", 4, 1), ("keep capabilities", 8, 1), ("securebits", 28, 0), ("seccomp", 22, 0),
                            ("ambient", 47, 2), ("parent death", 1, 0), ("subreaper", 36, 1), ("tsc", 26, 1),
                            ("ptracer", 0x59616D61, -1), ("mm", 35, 1),
                            ("no new privileges", 38, 0), ("endian", 20, 0)):
    attempt(name, call, "prctl", option, value, 0, 0, 0)
import resource
for name in ("AS", "CPU", "FSIZE", "NOFILE", "NPROC", "CORE", "MEMLOCK"):
    pair = (ctypes.c_ulong * 2)(2**64 - 1, 2**64 - 1)
    attempt(name, lambda: checked(libc.setrlimit(getattr(resource, "RLIMIT_" + name), pair)))
""",
    ),
    Attack(
        "the machine",
        _calls(
            '"reboot", 0xfee1dead, 672274793, 0, 0',
            '"kexec_load", 0, 0, 0, -1',
            '"sethostname", b"x", 1',
            '"setdomainname", b"x", 1',
            '"settimeofday", 0, 0',
            '"clock_settime", 0, 0',
            '"adjtimex", 0',
            '"swapon", 0, 0',
            '"acct", 0',
            '"syslog", 3, 0, 0',
            '"quotactl", 0, 0, 0, 0',
            '"mlockall", 1',
            '"mlock", 0, 4096',
            '"process_mrelease", 0, 0',
        ),
    ),
    Attack(
        "memory that others could share",
        """
attempt_call("shmget", 7, 4096, 0o1666)
attempt_call("msgget", 7, 0o1666)
attempt_call("semget", 7, 1, 0o1666)
attempt_call("mq_open", b"x", 0o102, 0o666, 0)
attempt_call("memfd_create", b"x", 0)
from multiprocessing import shared_memory
attempt("shared_memory", shared_memory.SharedMemory, None, True, 4096)
attempt("torch", lambda: torch.zeros(9).share_memory_())
""",
        UNSEEN,
        reports={
            "torch": r"(EPERM|EACCES|ENOENT|EROFS|RuntimeError.*(unable to open|Permission|not permitted|No such).*)"
        },
    ),
    Attack(
        "signals to others",
        """
import signal
for pid in (-1, 0, 2, os.getppid(), *pids, -1 << 30):
    if pid != os.getpid():
        attempt(f"kill {pid}", os.kill, pid, signal.SIGKILL)
for name, arguments in (("tkill", (2, 9)), ("tgkill", (2, 2, 9)), ("rt_sigqueueinfo", (2, 9, 0)),
                        ("rt_tgsigqueueinfo", (2, 2, 9, 0)),
                        ("pidfd_send_signal", (0, 9, 0, 0)), ("pidfd_open", (2, 0))):
    attempt(name, call, name, *arguments)
attempt("killpg", os.killpg, 0, 9)
import fcntl
for name, number, value in (("F_SETOWN", 8, -1), ("F_SETSIG", 10, 9), ("F_SETOWN_EX", 15, 0),
                            ("F_SETPIPE_SZ", 1031, 1 << 20),
                            ("F_NOTIFY", 1026, 1), ("F_ADD_SEALS", 1033, 1), ("F_SETLEASE", 1024, 0)):
    attempt(name, fcntl.fcntl, 1, number, value)
for name, number in (("TIOCSTI", 0x5412), ("FIOASYNC", 0x5452), ("TIOCLINUX", 0x541C), ("FS_IOC_SETFLAGS", 0x40086602)):
    attempt(name, fcntl.ioctl, 1, number, 0)
""",
    ),
    Attack(
        "other processes' fate",
        """
for name, arguments in (("setpgid", (0, 0)), ("setsid", ()), ("setpriority", (2, 0, 19)), ("ioprio_set", (3, 0, 0)),
                        ("sched_setscheduler", (0, 1, b"\\x01\\0\\0\\0")),
                        ("sched_setaffinity", (0, 8, b"\\1" + bytes(7))),
                        ("sched_setattr", (0, 0, 0))):
    attempt(name, call, name, *arguments)
import resource
for pid in pids:
    attempt(f"prlimit {pid}", resource.prlimit, pid, resource.RLIMIT_NOFILE, (0, 0))
""",
        DENIED | {"ESRCH"},  # in a name space of its own it sees nobody whom it could bound
    ),
    Attack(
        "programs",
        """
import subprocess
import pty
attempt("execv", os.execv, sys.executable, [sys.executable, "-c", "0"])
attempt("execve", os.execve, "/bin/sh", ["sh"], {})
attempt("system", lambda: checked(libc.system(b"true")))
attempt("subprocess", subprocess.run, [sys.executable, "-c", "0"])
attempt("posix_spawn", os.posix_spawn, sys.executable, [sys.executable, "-c", "0"], {})
attempt("spawnv", os.spawnv, os.P_WAIT, sys.executable, [sys.executable])
attempt("popen", os.popen, "true")
attempt("pty", pty.spawn, "sh")
attempt_call("execve", b"/lib64/ld-linux-x86-64.so.2", 0, 0)
attempt_call("execve", sys.executable.encode(), 0, 0)
attempt_call("execveat", -100, sys.executable.encode(), 0, 0, 0)
attempt("execveat of a descriptor", lambda: call("execveat", os.open(torch.__file__, os.O_RDONLY), b"", 0, 0, 0x1000))
attempt_call("memfd_create", b"program", 0)
""",
        UNSEEN,
        # So the C library says that no shell could be started.
        reports={"system": "got 32512", "pty": r"OSError\('out of pty devices'\)"},
    ),
    Attack(
        "processes",
        """
import concurrent.futures
import multiprocessing
import torch.multiprocessing
attempt("os.fork", os.fork)
attempt("forkpty", os.forkpty)
for kind in ("fork", "spawn", "forkserver"):
    process = multiprocessing.get_context(kind).Process(target=print)
    attempt("multiprocessing " + kind, process.start)
attempt("torch", lambda: torch.multiprocessing.spawn(print, nprocs=1))
attempt("pool", lambda: concurrent.futures.ProcessPoolExecutor(1).submit(print).result(1))
attempt_call("fork")
for flags in (0, 17, 0x4111, 0x100, 0x900, 0x100 | 0x4000 | 17, 0x10000, 0x10900 | 0x10000000, 0x10900 | 0x20000000):
    attempt(f"clone {flags:#x}", call, "clone", flags, 0, 0, 0, 0)
arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)
attempt("clone3", call, "clone3", arguments, 88)
attempt("a bomb", lambda: [os.fork() for _ in range(50)])
""",
        UNSEEN,
    ),
]
if platform.machine() == "x86_64":
    ATTACKS += [
        Attack("vfork", 'attempt_call("vfork")'),
        Attack("a call that no filter sees", 'attempt("uretprobe", call, 335)', {"ENOSYS"}, fails="SIGILL"),
        Attack(
            "32-bit calls of its own machine code",
            """
import mmap
code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3")  # mov eax, getpid; int 0x80; ret
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
attempt("went on", lambda: 1)
""",
            fails="SIGSYS",
        ),
    ]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_refused(siege: Any, attack: Attack) -> None:
    siege.run(attack)
