"""`python -m interlace_server --config FILE`: the gateway process, from its address to its last stream."""

import argparse
import asyncio
import gc
import os
import re
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from redis.exceptions import RedisError

from interlace_server.app import create_app
from interlace_server.doors.connections import Bounds, HttpConnection, WebSocketConnection
from interlace_server.drain import Drain
from interlace_state import log, owner
from interlace_state.config import Config
from interlace_state.config_file import ConfigError, load
from interlace_state.settings.gateway import GatewayConfig
from interlace_state.store import open_state

_DESCRIPTORS = 65_536
_OTHER_DESCRIPTORS = 64  # files, pipes and Redis
_LONGEST_MESSAGE = 16 << 10  # bytes of a WebSocket message from a client, which has nothing to say
_VANISHED = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}  # seconds, seconds, tries


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal; returns the exit status."""
    options = _parser().parse_args(arguments)
    log.configure()
    most = _allow_many_streams()
    chosen = {"gateway.host": options.host, "gateway.port": options.port}
    try:
        config = load(options.config, os.environ, {key: value for key, value in chosen.items() if value is not None})
        listener = _listen(config.gateway)
    except ConfigError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"cannot listen on {config.gateway.host}:{config.gateway.port}: {error.strerror or error}")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(config, listener, most))
    except ConfigError as error:
        return _refuse(str(error))
    except RedisError as error:
        url = re.sub(r"([?&]password=)[^&]*", r"\1***", re.sub("//[^/]*@", "//***@", str(config.redis.url)))
        return _refuse(f"Redis does not answer at {url}: {error}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m interlace_server", description="The gateway of Interlace.")
    parser.add_argument("--config", type=Path, help="configuration file, YAML or JSON")
    parser.add_argument("--host", help="address to listen on, in place of the configured one")
    parser.add_argument("--port", type=int, help="port to listen on, in place of the configured one; 0: a free one")
    return parser


def _refuse(sentence: str) -> int:
    print(f"interlace_server: {sentence}", file=sys.stderr)
    return 2


def _allow_many_streams() -> int:
    """A stream takes two descriptors, its client's and one to Redis: raise the usual limit of 1024.

    Returns how many connections there is room for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return max(1, (max(soft, wanted) - _OTHER_DESCRIPTORS) // 2)


def _listen(config: GatewayConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.create_server((config.host, config.port), family=family, backlog=2048)
    # Connections inherit this. The kernel drops a client that takes nothing of what waits for it, be it alive or not,
    # and whatever the bytes belong to: a download, a frame, an answer's end when the connection is closed already.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(config.stall_seconds * 1000)))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _VANISHED.items():
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
    return listener


async def _run(config: Config, listener: socket.socket, most: int) -> None:
    async with open_state(config) as state:
        if config.exposed and not await state.tenants.any():
            raise ConfigError(
                f"others than this machine can reach {config.gateway.public_url or config.gateway.host}, and there is "
                "no API key yet. Make one with `interlace keys create --tenant NAME`, or listen on 127.0.0.1."
            )
        try:
            # Starlette's uploads wait there for their end: they may be larger than a container's /tmp.
            tempfile.tempdir = state.files.staging()
            await owner.claim(state.files, config.redis.prefix)
        except OSError as error:
            raise ConfigError(f"the store cannot be written to: {error}.") from None
        drain = Drain()
        bounds = Bounds(config.gateway, most, state.audit)
        server = _Server(create_app(config, state, drain), config, drain, bounds)
        gc.freeze()  # what there is stays: no collection amid a request shall walk it
        await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn with our end: on its own it would close every WebSocket before its last frame."""

    def __init__(self, app: Any, config: Config, drain: Drain, bounds: Bounds) -> None:
        drain_seconds = config.gateway.drain_seconds
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="on",
                http=partial(HttpConnection, bounds),  # type: ignore[arg-type]  # called as the class is
                ws=partial(WebSocketConnection, bounds),  # type: ignore[arg-type]
                # nnsight answers pings only while it waits for a frame, not during a slow upload.
                ws_ping_interval=None,
                ws_per_message_deflate=False,
                ws_max_size=_LONGEST_MESSAGE,
                timeout_graceful_shutdown=int(drain_seconds) + 1,
                server_header=False,
            )
        )
        self._drain = drain
        self._drain_seconds = drain_seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        """The first signal drains, the second ends."""
        if self._drain.refusing:
            self._drain.closing.set()
            self.force_exit = True
        self._drain.refusing = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            print(f"listening on http://{address}", flush=True)
            log.info("listening", address=address, pid=os.getpid())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("draining", streams=self._drain.streams, seconds=self._drain_seconds)
        await self._drain.finish(self._drain_seconds)
        await super().shutdown(sockets)
        log.info("stopped")


if __name__ == "__main__":
    sys.exit(main())
