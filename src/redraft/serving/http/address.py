"""Where a server listens. No torch."""

from __future__ import annotations

import ipaddress
import socket

from redraft.errors import UserError


def loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """A socket that holds the port; nobody can connect before it listens. `UserError` where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror} (--port names another)") from None
    return made
