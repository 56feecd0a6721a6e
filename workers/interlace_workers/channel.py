"""Small messages with file descriptors between parent, zygote and child: JSON on a SOCK_SEQPACKET pair."""

import json
import os
import socket
from collections.abc import Sequence
from typing import Any

_LONGEST = 64 << 10  # bytes of one message
_MOST_FDS = 253  # the kernel's SCM_MAX_FD


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends that keep message boundaries."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message; the receiver gets duplicates of ``fds``. Raises OSError when the other end is gone."""
    data = json.dumps(message).encode()
    if len(data) > _LONGEST:
        raise ValueError(f"a message of {len(data)} bytes is over the {_LONGEST} that the channel takes")
    socket.send_fds(end, [data], list(fds))


def receive(end: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive one message. Raises EOFError when the other end is gone, BlockingIOError as the socket does."""
    try:
        data, fds, flags, _ = socket.recv_fds(end, _LONGEST, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        raise EOFError("the channel's other end is gone") from None
    if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise EOFError("the channel's other end is gone")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        for fd in fds:
            os.close(fd)
        raise EOFError("the channel's other end does not speak as we do")
    return message, fds
