"""What a running Interlace leaves in `state_dir/run` for other commands: a lock, who it is, its configuration."""

import contextlib
import fcntl
import json
import os
import pwd
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from interlace_deploy.problems import CommandProblem
from interlace_state.config import Config
from interlace_state.config_file import dump

_CLAIM = 0.5  # seconds that a claim waits for commands that look


@dataclass(frozen=True)
class Running:
    """Who holds the folder. The URL is None while it starts."""

    pid: int
    url: str | None = None


class RunDir:
    """The folder `state_dir/run`, for its owner only.

    The kernel drops a lock with the process that held it, so a record that was left by a crash, or
    whose process id is somebody else's by now, never counts.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "run"
        self.config = self.path / "config.json"
        self.socket = self.path / "redis.sock"
        self.ray_token = self.path / "ray_token"
        self._lock = self.path / "up.lock"
        self._record = self.path / "up.json"

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the folder until the block ends. Raises CommandProblem, with pid and URL, if somebody else does."""
        self.refuse_other_account()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise CommandProblem(f"{self.path}: {error.strerror} (choose another folder: `state_dir`)") from None
        try:
            if not _locked_within(handle, _CLAIM):
                raise CommandProblem(self._refusal())
            self.record(None)
            try:
                yield
            finally:
                self._record.unlink(missing_ok=True)
                self.config.unlink(missing_ok=True)
                self.ray_token.unlink(missing_ok=True)
        finally:
            os.close(handle)

    def refuse_second(self) -> None:
        """Raises CommandProblem, with pid and URL, if somebody holds the folder."""
        if self.running() is not None:
            raise CommandProblem(self._refusal())

    def refuse_other_account(self) -> None:
        """Raises CommandProblem if what lies here is another account's, or would be out of its reach."""
        me = os.geteuid()
        for folder in (self.path, self.path.parent):
            with contextlib.suppress(OSError):
                owner = folder.stat().st_uid
                if owner == me:
                    return
                # Root can write anywhere, and what it makes the owner cannot read. Who has no name here is no account
                # of this machine's: a container's folder may be of another one's.
                spoils = account(owner) != str(owner) if me == 0 else not os.access(folder, os.W_OK, effective_ids=True)
                if folder == self.path or spoils:
                    raise CommandProblem(_of_another(folder, account(owner), account(me), self.path.parent))

    def record(self, url: str | None) -> None:
        """Say that this process runs here, and where it listens."""
        write_private(self._record, json.dumps(asdict(Running(os.getpid(), url))))

    def write_config(self, config: Config) -> None:
        write_private(self.config, dump(config))

    def running(self) -> Running | None:
        """Who holds the folder; None if nobody does."""
        try:
            handle = os.open(self._lock, os.O_RDWR)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.refuse_other_account()
            raise CommandProblem(f"{self._lock}: {error.strerror}") from None
        try:
            if _locked(handle, fcntl.LOCK_SH):
                return None
            return Running(**json.loads(self._record.read_text()))
        except FileNotFoundError:
            return None
        finally:
            os.close(handle)

    def _refusal(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            other = Running(**json.loads(self._record.read_text()))
            where = f"at {other.url}" if other.url else "but is not ready yet"
            return (
                f"Interlace runs already {where} (process {other.pid}, state {self.path.parent}). "
                "Stop it with `interlace down`, or give this one another `state_dir`."
            )
        return f"Another process is just starting Interlace in {self.path.parent}."


def account(uid: int) -> str:
    """Its name; its number where it has none on this machine."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _of_another(folder: Path, owner: str, me: str, state_dir: Path) -> str:
    return (
        f"{folder} belongs to the account {owner}, and this command runs as {me}. Type it as {owner}: "
        f"`sudo -u {owner} interlace ...`. If {me} shall have the folder: `sudo chown -R {me}: {state_dir}`."
    )


def _locked(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked_within(handle: int, seconds: float) -> bool:
    """Take the lock for ourselves; a command that only looks holds it for an instant."""
    deadline = time.monotonic() + seconds
    while not _locked(handle, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def write_private(path: Path, text: str) -> None:
    """Write whole and readable by us only, for what holds a secret."""
    new = path.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    new.replace(path)
