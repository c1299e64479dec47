"""Encryption of what goes between the ends of one migration: made before anything is sent, removed at its end."""

from __future__ import annotations

import asyncio

from migrator import logs
from migrator.core.policy import Policy, TlsUse
from migrator.core.preflight.stream_tls import StreamTls
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.prepare import together
from migrator.errors import QemuError
from migrator.ports import Qemu

#: Nothing waits for the removal, and what is left is removed by whoever moves the guest next.
_REMOVE_SECONDS = 5.0


class StreamSecurity:
    """Encrypts the streams of one migration.

    :param tls: what both ends use; ``None``: they send plainly.
    """

    def __init__(
        self, source: Qemu, destination: Qemu, *, tls: StreamTls | None, result: MigrationOutcome
    ) -> None:
        self._source, self._destination = source, destination
        self._tls, self._result = tls, result
        self._log = logs.logger(migration=result.id)
        self._made = False

    @property
    def tls(self) -> StreamTls | None:
        """Return what both ends use; ``None``: they send plainly, or another controller began it."""
        return self._tls

    def refusal(self, policy: Policy) -> str:
        """Return why it may not begin: the policy requires what it has not; empty where it may."""
        if policy.tls_use is TlsUse.REQUIRE and self._tls is None:
            return "the policy requires encryption, and this stream would have none"
        return ""

    def take_up(self, *, encrypted: bool) -> None:
        """Go on with what another controller began."""
        self._made = self._result.tls = encrypted

    async def begin(self, policy: Policy) -> None:
        """Make both ends ready, before anything listens or is sent.

        :raise QemuError: an end cannot be asked, or refuses; nothing was sent.
        """
        if self._tls is not None:
            self._made = self._result.tls = True
            await together(
                self._source.encrypt(self._result.id, self._tls),
                self._destination.encrypt(self._result.id, self._tls),
            )
        elif policy.tls_use is TlsUse.OFF:
            await together(self._source.do_not_encrypt(), self._destination.do_not_encrypt())
        else:  # what a controller left that was killed: the destination would not understand it
            await self._source.forget_encryption()

    async def end(self, end: Qemu) -> None:
        """Remove what was made at an end. Never raises: it harms nobody, and is removed with the next migration."""
        if not self._made:
            return
        try:
            async with asyncio.timeout(_REMOVE_SECONDS):
                await end.forget_encryption()
        except (QemuError, TimeoutError) as error:
            self._log.warning("left-over TLS objects", end=end.name, error=str(error))
