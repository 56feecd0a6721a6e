"""Hostile code that a traced block runs on the server, and what it says about how far it came."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import nnsight

PROMPT = "The Eiffel Tower is in the city of"
#: What every planted secret looks like; the hostile code searches for it.
MARK = re.compile(r"planted-[a-z]+-[0-9a-f]{32}")

#: How a refusal looks to hostile code: no privilege, no right, no such call.
DENIED = frozenset({"EPERM", "EACCES", "ENOSYS"})
#: For what exists on the server, and not for a job.
UNSEEN = DENIED | {"ENOENT", "EROFS"}

#: Goes before each attack; its steps call `attempt`, which notes an error's name, or what was got.
PRELUDE = '''
import ctypes, errno, os, platform, re, sys
import torch

found = {}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
CALLS = {name: column[platform.machine() == "aarch64"] for name, column in {
    "vfork": (58, None), "fork": (57, None), "clone": (56, 220), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "setuid": (105, 146), "setgid": (106, 144),
    "setresuid": (117, 147), "setgroups": (116, 159), "capset": (126, 91), "setfsuid": (122, 151),
    "prctl": (157, 167), "personality": (135, 92), "userfaultfd": (323, 282), "memfd_create": (319, 279),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "reboot": (169, 142), "kexec_load": (246, 104), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "swapon": (167, 224), "acct": (163, 89),
    "syslog": (103, 116), "quotactl": (179, 60), "fanotify_init": (300, 262), "inotify_init1": (294, 26),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "splice": (275, 76), "vmsplice": (278, 75),
    "tee": (276, 77), "sendfile": (40, 71), "copy_file_range": (326, 285), "mlock": (149, 228),
    "mlockall": (151, 230), "move_pages": (279, 239), "migrate_pages": (256, 238), "tkill": (200, 130),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpgid": (109, 154),
    "setsid": (112, 157), "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "seccomp": (317, 277), "socket": (41, 198),
    "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "sendto": (44, 206), "sendmsg": (46, 211),
    "modify_ldt": (154, None), "iopl": (172, None), "ioperm": (173, None),
    **{name: (number, number) for name, number in {
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
        "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434, "clone3": 435,
        "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "pidfd_send_signal": 424,
        "landlock_create_ruleset": 444, "memfd_secret": 447, "process_mrelease": 448}.items()},
}.items()}


def checked(result):
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def call(name, *arguments):
    """A system call by its name, past everything that Python might refuse; small numbers and bytes as arguments."""
    number = CALLS[name] if isinstance(name, str) else name
    if number is None:
        raise OSError(errno.ENOSYS, name)
    plain = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return checked(libc.syscall(ctypes.c_long(number), *plain))


def show(value):
    """A value, short; secrets in it are kept."""
    text = repr(value)
    secrets = sorted(set(re.findall("planted-[a-z]+-[0-9a-f]{32}", text)))
    return text[:300] + "".join(secrets)


def attempt(step, act, *arguments):
    try:
        value = act(*arguments)
    except BaseException as error:
        chain = [error, error.__cause__, error.__context__]
        names = [errno.errorcode[one.errno] for one in chain if getattr(one, "errno", None) in errno.errorcode]
        found[step] = names[0] if names else show(error)
    else:
        found[step] = "got " + show(value)


def attempt_call(name, *arguments):
    attempt(name, call, name, *arguments)
'''


@dataclass(frozen=True)
class Attack:
    """One hostile block."""

    name: str
    source: str
    #: What each step that it reports may have come to: names of errors.
    refusals: Collection[str] = DENIED
    #: Steps of which something else is expected: name -> what it reports.
    reports: Mapping[str, str] = field(default_factory=dict)
    #: Where the request must fail: a regular expression of what the user reads.
    fails: str | None = None


def strike(client: Any, source: str, **names: Any) -> dict[str, str]:
    """Run hostile code in a traced block of a stock client; returns what each of its steps came to."""
    code = PRELUDE + source
    with client.trace(PROMPT, remote=True):
        scope = {"model": client, **names}
        exec(code, scope)
        found = nnsight.save(scope["found"])
    return dict(found)


def text_of(found: Mapping[str, str]) -> str:
    return json.dumps(found, indent=1)
