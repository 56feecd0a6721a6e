"""A hub of our own with one repository, lab/Tiny, which it also knows as lab/tiny."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def running(files: Mapping[str, bytes], holds: str = "") -> Iterator[dict[str, str]]:
    """Serve these files; yields what the environment of a process that uses the hub says of it.

    Of the file ``holds`` half comes, and no more until who wants it has left.
    """
    Hub.files, Hub.fetched, Hub.holds = dict(files), [], holds
    Hub.reached.clear()
    Hub.left.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP API as a download takes."""

    files: ClassVar[dict[str, bytes]] = {}
    fetched: ClassVar[list[str]] = []
    holds: ClassVar[str] = ""
    #: Whether half of that file has been sent, and whether its reader has left then.
    reached: ClassVar[threading.Event] = threading.Event()
    left: ClassVar[threading.Event] = threading.Event()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "/gated" in path:
            self._answer(403, b"{}", "GatedRepo")
        elif "/lab/" not in path:
            self._answer(404, b"{}", "RepoNotFound")
        elif path.startswith("/api/") and "/nonsense" in path:
            self._answer(404, b"{}", "RevisionNotFound")
        elif "/tree/" in path:
            listing = [
                {"type": "file", "path": name, "size": len(data), "oid": oid(data)} for name, data in self.items()
            ]
            self._answer(200, json.dumps(listing).encode())
        elif path.startswith("/api/"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.items()]
            info = {"id": "lab/Tiny", "modelId": "lab/Tiny", "sha": COMMIT, "siblings": siblings, "tags": []}
            self._answer(200, json.dumps(info | {"private": False, "downloads": 0, "likes": 0}).encode())
        else:
            name = path.split(f"/resolve/{COMMIT}/")[1]
            self.fetched.append(name)
            self._answer(200, self.files[name])

    def items(self) -> list[tuple[str, bytes]]:
        return sorted(self.files.items())

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _answer(self, status: int, body: bytes, code: str = "") -> None:
        self.send_response(status)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{oid(body)}"', "Content-Length": str(len(body))}
        for name, value in (headers | ({"X-Error-Code": code} if code else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            held = self.holds and self.path.endswith(self.holds)
            self.wfile.write(body[: len(body) // 2] if held else body)
            if held:
                self.wfile.flush()
                self.reached.set()
                self.connection.recv(1)
                self.left.set()


def oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
