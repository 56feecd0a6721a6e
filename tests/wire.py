"""A way to a gateway that can be cut, and that loses what is asked."""

import asyncio
import socket
import threading
from contextlib import suppress

from gateway_process import Gateway, until


class Wire:
    """A way to the gateway that can be cut."""

    def __init__(self, gateway: Gateway) -> None:
        self._to = ("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = 0
        #: Bytes of answers that have passed.
        self.answered = 0
        #: Answers that are lost on the way, and their connections with them.
        self.lost_answers = 0
        self.broken = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                if self.broken:
                    near.close()
                    self.connections += 1
                    continue
                far = socket.create_connection(self._to)
                self._open += [near, far]
                self.connections += 1
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(*pair, pair[0] is far), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(37):  # so few bytes that cuts fall into events
                if answers and self.lost_answers:
                    self.lost_answers -= 1
                    source.shutdown(socket.SHUT_RDWR)
                    break
                target.sendall(piece)
                self.answered += len(piece) if answers else 0
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


async def cut(wire: Wire, more: int) -> None:
    """Cut all connections and wait for so many new ones."""
    enough = wire.connections + more
    wire.cut()
    await asyncio.to_thread(until, lambda: wire.connections >= enough, "new connections")
