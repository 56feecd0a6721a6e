"""A proxy that ends TLS, as one stands before a gateway: a real listener, with a certificate of its own signing."""

import datetime
import ipaddress
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


@contextmanager
def before(url: str, folder: Path) -> Iterator[str]:
    """Serve what is at ``url`` over TLS; yields the `https://` address."""
    listener = socket.create_server(("127.0.0.1", 0))
    key, certificate = _certificate(folder)
    config = uvicorn.Config(
        _Proxy(url), ssl_keyfile=key, ssl_certfile=certificate, log_level="error", lifespan="off", proxy_headers=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


class _Proxy:
    """Passes requests on and says that they came over https; bodies are streamed."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        headers = [(name, value) for name, value in request.headers.raw if name not in (b"connection", b"te")]
        headers.append((b"x-forwarded-proto", b"https"))
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        async with httpx.AsyncClient(base_url=self._url, timeout=60, verify=False, trust_env=False) as client:
            passed = client.build_request(request.method, path, headers=headers, content=await request.body())
            answer = await client.send(passed, stream=True)

            async def body() -> AsyncIterator[bytes]:
                async for chunk in answer.aiter_raw():
                    yield chunk

            response = StreamingResponse(body(), answer.status_code)
            hop = (b"transfer-encoding", b"connection")
            response.raw_headers = [one for one in answer.headers.raw if one[0].lower() not in hop]
            await response(scope, receive, send)


def _certificate(folder: Path) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    files = folder / "key.pem", folder / "certificate.pem"
    for file, data in zip(files, (private, made.public_bytes(serialization.Encoding.PEM)), strict=True):
        file.write_bytes(data)
    return str(files[0]), str(files[1])
