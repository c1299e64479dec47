"""Where ``[http]`` says that HTTP is listened for: what the process that binds the sockets needs, and no more."""

from __future__ import annotations

import socket
import ssl

from migrator.http.listeners import Listeners, Tcp, UnixSocket
from migrator.settings.models import HttpSettings
from migrator.tls import File, names_in, server_context


def listeners(http: HttpSettings) -> Listeners:
    """Return where HTTP is listened for, not bound yet.

    :raise UsageError: the certificate or its key cannot be used.
    """
    names(http)  # what is wrong with the certificate is said here, where somebody reads it
    return Listeners(unix=unix(http), tcp=tcp(http), metrics=metrics(http))


def names(http: HttpSettings) -> list[str]:
    """Return what the service may be called by who asks it over TCP; addresses always do.

    :raise UsageError: the certificate cannot be used.
    """
    own = socket.gethostname()
    found = [*http.hosts, own, own.partition(".")[0]]
    found += [listen.host for listen in (http.listen, http.metrics_listen) if listen is not None]
    if http.tls_certificate is not None:
        found += names_in(File(name="[http] tls_certificate", path=http.tls_certificate))
    return found


def unix(http: HttpSettings) -> UnixSocket | None:
    """Return where the Unix socket is; ``None``: there is none."""
    if http.socket is None:
        return None
    return UnixSocket(
        path=http.socket,
        mode=http.socket_mode,
        owner=http.socket_owner or None,
        group=http.socket_group or None,
    )


def tcp(http: HttpSettings) -> Tcp | None:
    """Return where the API is listened for by TCP; ``None``: nowhere.

    :raise UsageError: the certificate or its key cannot be used.
    """
    if http.listen is None:
        return None
    return Tcp(host=http.listen.host, port=http.listen.port, tls=_tls(http))


def metrics(http: HttpSettings) -> Tcp | None:
    """Return where only metrics and probes are listened for; ``None``: nowhere."""
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
