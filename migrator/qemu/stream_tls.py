"""Objects of a QEMU that a migration's stream, and what else goes between the hosts, is encrypted with.

Both ends are given a ``tls-creds-x509``, the destination a list of whom it takes as well. Their ids carry the
migration's, so whoever takes it up, or finds them later, knows whose they are.
"""

from __future__ import annotations

from typing import Any

from migrator.core.preflight.stream_tls import StreamTls
from migrator.errors import CommandFailed
from migrator.qemu.claim import DriverClaim
from migrator.qemu.marks import PREFIX
from migrator.qemu.monitor import Monitor

#: QEMU's words where its user may not read a file.
_UNREADABLE = ("Error while reading file", "Permission denied")
#: How long credentials may take. Where there is no dh-params.pem the destination computes a group of Diffie-Hellman,
#: which takes half a second of a processor on average, several by chance, and more where others want that processor.
CREDENTIALS_SECONDS = 30.0
_CREDENTIALS, _PEERS = f"{PREFIX}tls-", f"{PREFIX}peers-"


def credentials_id(migration: str) -> str:
    """Return the id of the ``tls-creds-x509`` of a migration, the same at both ends."""
    return f"{_CREDENTIALS}{migration}"


def peers_id(migration: str) -> str:
    """Return the id of the list of whom the destination of a migration takes."""
    return f"{_PEERS}{migration}"


def nbd_server_arguments(migration: str) -> dict[str, Any]:
    """Return what ``nbd-server-start`` at the destination takes besides, so that the source alone may connect."""
    return {"tls-creds": credentials_id(migration), "tls-authz": peers_id(migration)}


def nbd_client_options(migration: str, tls: StreamTls) -> dict[str, Any]:
    """Return what the ``nbd`` driver of ``blockdev-add`` at the source takes besides."""
    return {"tls-creds": credentials_id(migration), "tls-hostname": tls.hostname}


async def make(
    monitor: Monitor, claim: DriverClaim, migration: str, tls: StreamTls, *, arrives: bool
) -> None:
    """Make the objects at one end, and have the migration use them; those of earlier migrations are removed.

    :param arrives: it is the destination.
    :raise CommandFailed: QEMU does not take the certificates; the message says why. Nothing is used then.
    :raise QemuError: it cannot be asked.
    """
    await claim.ensure()
    for left in await _ours(monitor):
        await _delete(monitor, claim, left)
    directory = tls.destination_directory if arrives else tls.source_directory
    credentials = {
        "qom-type": "tls-creds-x509",
        "id": credentials_id(migration),
        "dir": directory,
        "endpoint": "server" if arrives else "client",
        "verify-peer": True,
    }
    try:
        await claim.execute("object-add", credentials, timeout=CREDENTIALS_SECONDS)
    except CommandFailed as error:
        if not any(words in error.description for words in _UNREADABLE):
            raise
        text = (
            f"{error.description.rstrip('.')}: the keys in {directory} have to be readable for QEMU's user there "
            "(migrator pki issue HOST --owner USER)"
        )
        raise CommandFailed(monitor.name, error.command, error.error_class, text) from error
    if not arrives:
        used = {"tls-creds": credentials_id(migration), "tls-hostname": tls.hostname}
        await claim.execute("migrate-set-parameters", used)
        return
    rules = [{"match": subject, "policy": "allow", "format": "exact"} for subject in tls.subjects]
    await claim.execute(
        "object-add",
        {"qom-type": "authz-list", "id": peers_id(migration), "policy": "deny", "rules": rules},
    )
    await claim.execute(
        "migrate-set-parameters",
        {"tls-creds": credentials_id(migration), "tls-authz": peers_id(migration)},
    )


async def do_without(monitor: Monitor, claim: DriverClaim) -> None:
    """Have the migration send plainly, whatever somebody has set before.

    :raise QemuError: it cannot be asked, or refuses.
    """
    parameters = await monitor.execute("query-migrate-parameters")
    if parameters.get("tls-creds"):
        await claim.execute("migrate-set-parameters", {"tls-creds": "", "tls-hostname": ""})


async def remove(monitor: Monitor, claim: DriverClaim) -> None:
    """Remove the objects that migrations of ours left, and use them no more; nothing where there are none.

    :raise QemuError: it cannot be asked, or one is still in use.
    """
    ours = await _ours(monitor)
    if not ours:
        return
    parameters = await monitor.execute("query-migrate-parameters")
    used = {name: "" for name in ("tls-creds", "tls-authz") if parameters.get(name) in ours}
    if "tls-creds" in used:
        used["tls-hostname"] = ""
    if used:
        await claim.execute("migrate-set-parameters", used)
    for name in ours:
        await _delete(monitor, claim, name)


async def _ours(monitor: Monitor) -> list[str]:
    found = await monitor.execute("qom-list", {"path": "/objects"})
    names = [str(each["name"]) for each in found]
    return [name for name in names if name.startswith((_CREDENTIALS, _PEERS))]


async def _delete(monitor: Monitor, claim: DriverClaim, name: str) -> None:
    try:
        await claim.execute("object-del", {"id": name})
    except CommandFailed:
        if name in await _ours(monitor):
            raise
