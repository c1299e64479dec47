"""Headers of every answer of a controller that stands by: who acts, and how old what is shown may be."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from migrator.api.service_documents import ServiceDocument


class RoleHeaders:
    """Adds ``Migrator-Role``, ``Migrator-Acting``, ``Migrator-Stale-Seconds``; none where a controller is alone."""

    def __init__(self, app: ASGIApp, *, service: Callable[[], ServiceDocument]) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        service = self._service()
        if scope["type"] != "http" or service.role == "alone":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Migrator-Role"] = service.role
                if service.role != "acting":
                    headers["Migrator-Acting"] = service.acting or "nobody"
                    if service.stale_seconds is not None:
                        headers["Migrator-Stale-Seconds"] = f"{service.stale_seconds:.1f}"
            await send(message)

        await self._app(scope, receive, with_headers)
