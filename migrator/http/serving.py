"""How HTTP is served, as ``[http]`` says: what only the process that answers needs."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from fastapi import FastAPI

from migrator.http import from_settings
from migrator.http.admission import Admission
from migrator.http.limits import Limits
from migrator.http.server import Servers
from migrator.http.wellformed import known_names
from migrator.settings.models import HttpSettings


def limits(http: HttpSettings) -> Limits:
    """Return what whoever asks by HTTP may cost."""
    return Limits.of(http, hosts=known_names(from_settings.names(http)))


def servers(app: FastAPI, http: HttpSettings, *, inherited: Mapping[str, socket.socket]) -> Servers:
    """Return what answers at sockets that another process has bound."""
    return Servers(
        app,
        unix=from_settings.unix(http),
        tcp=from_settings.tcp(http),
        metrics=from_settings.metrics(http),
        inherited=inherited,
        admission=Admission.of(http),
    )
