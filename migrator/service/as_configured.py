"""What the configuration says, put as each part of the service wants to hear it."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from migrator.http.admission import Admission
from migrator.http.limits import Limits as HttpLimits
from migrator.http.listeners import Tcp, UnixSocket
from migrator.http.server import Servers
from migrator.http.wellformed import known_names
from migrator.settings import Settings
from migrator.tls import File, names_in, server_context


def http_limits(settings: Settings) -> HttpLimits:
    """What whoever asks by HTTP may cost."""
    http = settings.http
    return HttpLimits(
        requests_per_second=http.requests_per_second,
        burst=http.burst,
        streams=http.streams,
        streams_per_caller=http.streams_per_caller,
        body_bytes=http.max_body,
        request_seconds=http.request_timeout,
        hosts=_names(settings),
    )


def _names(settings: Settings) -> frozenset[str]:
    """What the service may be called by who asks it over TCP; addresses always do."""
    http = settings.http
    own = socket.gethostname()
    names = [*http.hosts, own, own.partition(".")[0]]
    names += [listen.host for listen in (http.listen, http.metrics_listen) if listen is not None]
    if http.tls_certificate is not None:
        names += names_in(File(name="[http] tls_certificate", path=http.tls_certificate))
    return known_names(names)


def http_servers(app: Any, settings: Settings) -> Servers:
    """Where HTTP is listened for, not begun yet."""
    http = settings.http
    unix = tcp = metrics = None
    if http.socket is not None:
        unix = UnixSocket(
            path=http.socket,
            mode=http.socket_mode,
            owner=http.socket_owner or None,
            group=http.socket_group or None,
        )
    if http.listen is not None:
        tcp = Tcp(host=http.listen.host, port=http.listen.port, tls=_tls(settings))
    if http.metrics_listen is not None:
        metrics = Tcp(host=http.metrics_listen.host, port=http.metrics_listen.port)
    admission = Admission(
        connections=http.connections,
        connections_per_address=http.connections_per_address,
        address_requests_per_second=http.address_requests_per_second,
    )
    return Servers(app, unix=unix, tcp=tcp, metrics=metrics, admission=admission)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    http = settings.http
    if http.tls_certificate is None:
        return None
    return server_context(
        certificate=File(name="[http] tls_certificate", path=http.tls_certificate),
        key=File(name="[http] tls_key", path=http.tls_key) if http.tls_key is not None else None,
    )
