"""Addresses: may we listen there, how do we reach it, what of it may be printed."""

import errno
import re
import socket
from urllib.parse import urlsplit

from interlace_deploy.problems import CommandProblem


def check_port(host: str, port: int) -> None:
    """Raises CommandProblem, naming what to change, where the gateway could not listen."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
    except socket.gaierror as error:
        raise CommandProblem(
            f"{host} is no address to listen on ({error.strerror}): choose another with --host."
        ) from None
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise CommandProblem(_refused(error, host, port)) from None


def _refused(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use: choose another with --port (0 takes a free one)."
    if error.errno == errno.EACCES:
        return f"Port {port} on {host} is not allowed to you: choose one over 1023 with --port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine: choose another with --host."
    return f"Cannot listen on {host}, port {port}: {error.strerror}."


def hidden(url: str) -> str:
    """A URL without its password, for people's eyes; Redis takes one in the query, too."""
    url = re.sub(r"([?&]password=)[^&#]*", r"\1***", url)
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}").geturl()


def reachable(host: str, port: int) -> str:
    """The URL of a gateway on this machine, as a client here writes it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
