"""Promise: a job reads no file but the libraries' and writes none; no other process's memory or environment either."""

from typing import Any

import pytest
from hostile import DENIED, UNSEEN, Attack

#: Every way to name a file still leads to a refusal: of the name, or of what the descriptor is.
_ODD = UNSEEN | {"EBADF", "ENOTDIR", "EISDIR"}

ATTACKS = [
    Attack(
        "open",
        """
for name, path in paths.items():
    attempt(name, lambda: open(path, "rb").read(1 << 16))
    attempt(name + " by os", lambda: os.read(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), 1 << 16))
""",
        UNSEEN,
    ),
    Attack("stat", "for name in paths.keys() - {'home'}:\n    attempt(name, os.stat, paths[name])", UNSEEN),
    Attack(
        "list",
        """
for path in ("/", "/etc", "/home", "/root", "/tmp", "/proc", "/sys", "/dev", "/dev/shm", "/run", "/var", "/usr", "/opt",
             paths["state"], paths["home"], os.path.dirname(paths["weights"]), "."):
    attempt(path, os.listdir, path)
""",
        UNSEEN,
    ),
    Attack(
        "ways around",
        """
secret = paths["secret"]
for odd in ("/.." * 9 + secret, "/usr/lib/.." * 3 + secret, "//" + secret, "./../../.." + secret,
            os.path.dirname(torch.__file__) + "/.." * 20 + secret, "/proc/self/root" + secret, "/proc/1/root" + secret,
            "/proc/self/cwd/.." + secret):
    attempt(odd, lambda: open(odd).read())
attempt("chdir", os.chdir, os.path.dirname(secret))
attempt("chroot", os.chroot, "/usr/lib")
attempt("open_tree", call, "open_tree", -100, secret.encode(), 1)
attempt("handle", call, "name_to_handle_at", -100, secret.encode(), 0, 0, 0)
attempt("by handle", call, "open_by_handle_at", -100, 0, 0)
for fd in range(64):
    attempt(f"from {fd}", lambda: os.listdir(os.open("..", os.O_RDONLY, dir_fd=fd)))
""",
        _ODD,
    ),
    Attack(
        "write",
        """
folder = os.path.dirname(torch.__file__)
for path in ("/x", "/tmp/x", "/dev/shm/x", "/var/tmp/x", "/run/x", "x", paths["state"] + "/x", paths["home"] + "/x",
             folder + "/x", folder + "/x.py", "/usr/lib/x", "/etc/ld.so.preload", "/etc/cron.d/x"):
    attempt(path, lambda: open(path, "w"))
attempt("without a name", os.open, folder, os.O_TMPFILE | os.O_RDWR)
import tempfile
attempt("tempfile", tempfile.mkstemp)
""",
        UNSEEN,
    ),
    Attack(
        "spoil a library",
        """
file = torch.__file__
for mode in ("a", "r+", "w"):
    attempt(mode, open, file, mode)
for act in (os.unlink, os.rmdir, os.mkdir, os.mkfifo):
    attempt(act.__name__, act, file)
attempt("chmod", os.chmod, file, 0o777)
attempt("chown", os.chown, file, 0, 0)
attempt("rename", os.rename, file, file + ".x")
attempt("link", os.link, file, file + ".x")
attempt("truncate", os.truncate, file, 0)
attempt("utime", os.utime, file)
attempt("setxattr", os.setxattr, file, "user.x", b"x")
attempt("mknod", os.mknod, file + ".x", 0o60600, os.makedev(254, 0))
attempt("ftruncate", lambda: os.ftruncate(os.open(file, os.O_RDONLY), 0))
attempt("fchmod", lambda: os.fchmod(os.open(file, os.O_RDONLY), 0o777))
""",
        UNSEEN | {"EINVAL"},
    ),
    Attack(
        "links",
        """
folder = os.path.dirname(torch.__file__)
for target in (paths["secret"], "/etc/passwd", "/proc/self/mem"):
    for place in ("/tmp/l", "/dev/shm/l", "l", folder + "/l"):
        attempt(f"symlink {place} {target}", os.symlink, target, place)
        attempt(f"link {place} {target}", os.link, target, place)
attempt("rename", os.rename, paths["secret"], "/tmp/mine")
attempt("replace", os.replace, "/usr/lib", "/mine")
""",
        UNSEEN,
    ),
    Attack(
        "devices",
        """
for name in ("mem", "kmem", "port", "kmsg", "ptmx", "tty", "fuse", "kvm", "vda", "sda", "loop0", "net/tun", "fd/0",
             "stdin", "stdout", "random", "full", "nvidia0", "nvidiactl"):
    attempt(name, lambda: open("/dev/" + name, "r+b", 0).read(1))
""",
        UNSEEN,
    ),
    Attack(
        "proc of itself",
        """
for name in ("mem", "maps", "environ", "cmdline", "status", "fd", "fd/1", "exe", "root", "cwd", "auxv", "stack",
             "task", "net/tcp", "net/unix", "mountinfo", "ns/pid", "oom_score_adj", "uid_map", "smaps_rollup"):
    attempt(name, lambda: os.open("/proc/self/" + name, os.O_RDONLY))
    attempt(name + " (thread)", lambda: os.open("/proc/thread-self/" + name, os.O_RDONLY))
attempt("oom_score_adj", lambda: open("/proc/self/oom_score_adj", "w").write("-1000"))
""",
        UNSEEN,
    ),
    Attack(
        "proc of others",
        """
for pid in (1, os.getppid(), *pids):
    for name in ("mem", "environ", "cmdline", "maps", "fd", "root", "cwd"):
        attempt(f"{pid} {name}", lambda: os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
for path in ("/proc/kcore", "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/keys", "/sys/kernel",
             "/sys/fs/cgroup/cgroup.procs", "/sys/class/net"):
    attempt(path, open, path)
""",
        UNSEEN,
    ),
    Attack(
        "environment",
        """
libc.getenv.restype = ctypes.c_char_p
attempt("planted", lambda: os.environ["PLANTED_TOKEN"])
attempt("below Python", lambda: {}[libc.getenv(b"PLANTED_TOKEN")])
words = ("TOKEN", "SECRET", "PASS", "KEY", "REDIS", "AWS", "HOME", "USER", "PLANTED", "RAY")
telling = [name for name in os.environ if any(word in name for word in words) and name != "TOKENIZERS_PARALLELISM"]
attempt("telling names", lambda: telling)
""",
        reports={
            "planted": r"KeyError\('PLANTED_TOKEN'\)",
            "below Python": r"KeyError\(None\)",
            "telling names": r"got \[\]",
        },
    ),
    Attack(
        "memory, page by page",
        """
# A write to a pipe from an address that is not mapped is an error and no crash: a way to look everywhere.
reader, writer = os.pipe2(os.O_NONBLOCK)
libc.sbrk.restype = ctypes.c_void_p
libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
seen, secrets, before = 0, set(), b""
environ = ctypes.c_void_p.in_dll(libc, "environ").value
strings = ctypes.c_void_p.from_address(environ).value if environ else 0
objects = [id(object()), id({}), id("x" * 600), torch.zeros(9).data_ptr(), id(os.environ), id(sys.modules)]
ranges = [(libc.sbrk(0) - (48 << 20), 48 << 20), *((at - (6 << 20), 12 << 20) for at in (*objects, environ, strings))]
piece = 1 << 14
for start, length in ranges:
    start -= start % piece
    for at in range(max(start, piece), start + length, piece):
        got = libc.write(writer, at, piece)
        if got > 0:
            data = os.read(reader, got)
            seen += got
            for match in re.findall(rb"planted-[a-z]+-[0-9a-f]{32}", before[-64:] + data):
                secrets.add(match)
            before = data
attempt("looked at much", lambda: seen > 8 << 20)
attempt("secrets", lambda: sorted(secrets))
""",
        reports={"looked at much": "got True", "secrets": r"got \[\]"},
    ),
    Attack(
        "every Python object",
        """
import gc
import threading
gc.unfreeze()  # a child's objects are frozen, which hides them from get_objects
texts, kinds = [], set()
frame = sys._getframe()
while frame is not None:
    texts.append(repr(frame.f_locals)[:100_000]) if "__builtins__" not in frame.f_locals else None
    frame = frame.f_back
for one in (*gc.get_objects(), *gc.get_referrers(os.environ)):
    kinds.add(type(one).__module__)
    try:
        if type(one) in (dict, list, tuple, set):
            texts += [text for text in (one.values() if type(one) is dict else one) if type(text) is str]
            texts += [repr(text) for text in (one.values() if type(one) is dict else one) if type(text) is bytes]
    except Exception:
        continue
attempt("many", lambda: len(texts) > 10_000)
attempt("secrets", lambda: sorted(set(re.findall("planted-[a-z]+-[0-9a-f]{32}", "\\n".join(texts)))))
ours = ("redis", "ray", "interlace_state", "interlace_server")
private = [name for name, module in sys.modules.items() if module and name.partition(".")[0] in ours]
attempt("modules of the service", lambda: private)
attempt("where its state lies", lambda: [text for text in texts if text.startswith(paths["state"][:-4])])
""",
        reports={
            "many": "got True",
            "secrets": r"got \[\]",
            "modules of the service": r"got \[\]",
            "where its state lies": r"got \[\]",
        },
    ),
    Attack(
        "descriptors",
        """
import stat
kinds = {}
for fd in range(4097):
    try:
        kinds[fd] = stat.S_IFMT(os.fstat(fd).st_mode)
    except OSError:
        continue
names = {stat.S_IFIFO: "pipe", stat.S_IFREG: "file", stat.S_IFCHR: "device", stat.S_IFSOCK: "socket", 0: "kernel's"}
attempt("open", lambda: sorted(names.get(kind, "else") for kind in kinds.values()))
for fd, kind in kinds.items():
    if kind == stat.S_IFIFO:
        attempt(f"read the pipe {fd}", os.read, fd, 1)
    if kind == stat.S_IFREG:
        attempt(f"contents of {fd}", os.pread, fd, 1 << 16, 0)
    if kind == stat.S_IFDIR:
        attempt(f"folder {fd}", os.listdir, fd)
""",
        {"EBADF", "got b''"},  # a pipe's other end is not its own; nobody has written to its result and its values
        reports={"open": r"got \['device', 'file', 'file', 'pipe', 'pipe', 'pipe'\]"},
    ),
    Attack(
        "notify and copy",
        """
attempt_call("inotify_init1", 0)
attempt_call("fanotify_init", 0, 0)
attempt_call("copy_file_range", 1, 0, 2, 0, 1, 0)
attempt_call("sendfile", 1, 2, 0, 1)
attempt_call("splice", 1, 0, 2, 0, 1, 0)
attempt_call("vmsplice", 1, 0, 0, 0)
attempt_call("tee", 1, 2, 1, 0)
""",
        DENIED,
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_refused(siege: Any, attack: Attack) -> None:
    siege.run(attack)
