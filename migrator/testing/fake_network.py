"""Addresses at which the fake QEMUs of this process listen; the ports are no real ones."""

from __future__ import annotations

import itertools

from migrator.testing.fake_monitor import CommandRefused
from migrator.testing.fake_node import FakeNode

_listening: dict[str, FakeNode] = {}
_ports = itertools.cycle(range(49152, 65536))


def listen(node: FakeNode, uri: str) -> None:
    """Let a node listen at `uri`.

    :raise CommandRefused: when the address makes no sense or is taken.
    """
    host, port = address(uri)
    if port == "0":
        port = next(text for text in map(str, _ports) if text not in _listening)
    elif port in _listening:
        raise CommandRefused("Failed to find an available port: Address already in use")
    _listening[port] = node
    node.listens_at, node.listen_host = port, host


def stop_listening(node: FakeNode) -> None:
    """Stop listening; nobody else will find the node."""
    if node.listens_at is not None and _listening.get(node.listens_at) is node:
        del _listening[node.listens_at]


def address(uri: str) -> tuple[str, str]:
    """Return host and port of ``tcp:HOST:PORT``.

    :raise Refused: in QEMU's words.
    """
    kind, _, rest = uri.partition(":")
    if kind != "tcp":
        raise CommandRefused(f"unknown migration protocol: {uri}")
    host, colon, port = rest.rpartition(":")
    if not colon or not port:
        raise CommandRefused(f"error parsing address '{rest}'")
    return host, port


def listener(port: str) -> FakeNode | None:
    """Return the node that listens at a port; ``None`` where none does."""
    return _listening.get(port)
