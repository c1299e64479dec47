"""What the section ``[http]`` says, put as each part of the entrances by HTTP wants to have it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping

from fastapi import FastAPI

from migrator.http.admission import Admission
from migrator.http.limits import Limits
from migrator.http.listeners import Listeners, Tcp, UnixSocket
from migrator.http.server import Servers
from migrator.http.wellformed import known_names
from migrator.settings.models import HttpSettings
from migrator.tls import File, names_in, server_context


def limits(http: HttpSettings) -> Limits:
    """Return what whoever asks by HTTP may cost."""
    return Limits.of(http, hosts=_names(http))


def _names(http: HttpSettings) -> frozenset[str]:
    """What the service may be called by who asks it over TCP; addresses always do."""
    own = socket.gethostname()
    names = [*http.hosts, own, own.partition(".")[0]]
    names += [listen.host for listen in (http.listen, http.metrics_listen) if listen is not None]
    if http.tls_certificate is not None:
        names += names_in(File(name="[http] tls_certificate", path=http.tls_certificate))
    return known_names(names)


def listeners(http: HttpSettings) -> Listeners:
    """Return where HTTP is listened for, not bound yet.

    :raise UsageError: the certificate or its key cannot be used.
    """
    limits(
        http
    )  # the other process needs the names in the certificate, and nobody would read there what is wrong
    return Listeners(unix=_unix(http), tcp=_tcp(http), metrics=_metrics(http))


def servers(app: FastAPI, http: HttpSettings, *, inherited: Mapping[str, socket.socket]) -> Servers:
    """Return what answers at sockets that another process has bound.

    :raise UsageError: the certificate or its key cannot be used.
    """
    unix, tcp, metrics = _unix(http), _tcp(http), _metrics(http)
    return Servers(
        app, unix=unix, tcp=tcp, metrics=metrics, inherited=inherited, admission=Admission.of(http)
    )


def _unix(http: HttpSettings) -> UnixSocket | None:
    if http.socket is None:
        return None
    return UnixSocket(
        path=http.socket,
        mode=http.socket_mode,
        owner=http.socket_owner or None,
        group=http.socket_group or None,
    )


def _tcp(http: HttpSettings) -> Tcp | None:
    if http.listen is None:
        return None
    return Tcp(host=http.listen.host, port=http.listen.port, tls=_tls(http))


def _metrics(http: HttpSettings) -> Tcp | None:
    if http.metrics_listen is None:
        return None
    return Tcp(host=http.metrics_listen.host, port=http.metrics_listen.port)


def _tls(http: HttpSettings) -> ssl.SSLContext | None:
    if http.tls_certificate is None:
        return None
    return server_context(
        certificate=File(name="[http] tls_certificate", path=http.tls_certificate),
        key=File(name="[http] tls_key", path=http.tls_key) if http.tls_key is not None else None,
    )
