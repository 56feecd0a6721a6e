"""One Interlace a state folder; what a dead one left counts for nothing."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from interlace_deploy.parts.rundir import RunDir, Running, account
from interlace_deploy.problems import CommandProblem
from interlace_state.config import Config
from interlace_state.settings.services import RedisConfig

_HOLDER = (
    "import sys, time; from pathlib import Path; from interlace_deploy.parts.rundir import RunDir\n"
    "run = RunDir(Path(sys.argv[1]))\n"
    "with run.claim():\n"
    "    run.record('http://127.0.0.1:1')\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)"
)


@contextmanager
def holder(state_dir: Path) -> "Iterator[subprocess.Popen[str]]":
    """Another process that holds the folder."""
    words = [sys.executable, "-c", _HOLDER, str(state_dir)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_nobody_is_there(tmp_path: Path) -> None:
    assert RunDir(tmp_path / "never").running() is None
    RunDir(tmp_path / "never").refuse_second()


def test_a_second_claim_is_refused_with_pid_and_url(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with holder(tmp_path) as other:
        assert run.running() == Running(other.pid, "http://127.0.0.1:1")
        said = f"Interlace runs already at http://127.0.0.1:1 \\(process {other.pid}, state {tmp_path}\\)"
        with pytest.raises(CommandProblem, match=said), run.claim():
            pass
        with pytest.raises(CommandProblem, match=said):
            run.refuse_second()


def test_the_record_of_a_killed_one_does_not_count(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (run.path / "up.json").exists()
    assert run.running() is None
    with run.claim():
        assert run.running() == Running(os.getpid(), None)
    assert run.running() is None


def test_only_its_owner_can_look_into_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with run.claim():
        run.write_config(Config(redis=RedisConfig(url="redis://:secret@host")))
        assert run.path.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in run.path.iterdir()} == {0o600}
    assert not run.config.exists()


@pytest.fixture
def of_another(tmp_path: Path) -> tuple[Path, str]:
    """A state folder of another account, and its name."""
    if os.geteuid() == 0:
        folder = tmp_path / "state"
        folder.mkdir(mode=0o755)
        shutil.chown(folder, "daemon")
        return folder, "daemon"
    return Path("/"), "root"


def test_another_accounts_folder_is_left_alone(of_another: tuple[Path, str]) -> None:
    """Root could write there, and what it makes the service could not read."""
    folder, owner = of_another
    me = account(os.geteuid())
    with pytest.raises(CommandProblem, match=f"belongs to the account {owner}, and this command runs as {me}") as told:
        with RunDir(folder).claim():
            pass
    assert f"`sudo -u {owner} interlace ...`" in str(told.value)
    assert f"`sudo chown -R {me}: {folder}`" in str(told.value)
    if owner == "daemon":
        assert list(folder.iterdir()) == []


@pytest.fixture
def reachable_path() -> Iterator[Path]:
    """As `tmp_path`, for every account."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another account, which root may do alone")
def test_a_folder_that_the_account_may_not_enter(tmp_path: Path) -> None:
    """`sudo -u interlace interlace status`, typed in /root."""
    script = "import os; from interlace_deploy.settings import read; os.setuid(1); print(read(None, {}).gateway.port)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "8000\n", done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="gives folders away, which root may do alone")
def test_whose_folder_it_is(reachable_path: Path) -> None:
    """What root has made is not the service's; a folder that somebody may write to is, whoever owns it."""
    folder = reachable_path / "state"
    folder.mkdir()
    folder.chmod(0o777)
    with RunDir(folder).claim():
        pass
    script = (
        "import os, sys; from pathlib import Path; from interlace_deploy.parts.rundir import RunDir; os.setuid(1)\n"
        "run = RunDir(Path(sys.argv[1]))\n"
        "try: run.refuse_other_account()\n"
        "except Exception as error: print(error)"
    )

    def said() -> str:
        words = [sys.executable, "-c", script, str(folder)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert f"{folder}/run belongs to the account root, and this command runs as daemon" in said()
    shutil.rmtree(folder / "run")
    assert said() == ""
    os.chown(folder, 54321, -1)
    RunDir(folder).refuse_other_account()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandProblem, match="choose another folder: `state_dir`"), RunDir(tmp_path / "file").claim():
        pass
