"""Path between the two QEMUs of ``migrator direct``: what its stream shows of it, now and in earlier migrations."""

from __future__ import annotations

from migrator.addresses import host_port
from migrator.cli.direct_network import is_loopback
from migrator.engine.migration.shared_path import OwnPath, SharedPath
from migrator.qemu.address import Address

#: Name of this machine among the sources.
_HERE = "localhost"


def direct_path(source: Address, listen: str) -> SharedPath:
    """Return the path that a stream takes from `source`.

    The stream is held to what a narrow path carries, so that little is queued whenever its end comes. On any other it
    goes as fast as it can: there is no schedule whose other streams would need what it leaves.

    :param listen: where the destination takes the stream: ``tcp:ADDR:0``.
    """
    kind, _, where = listen.partition(":")
    target = host_port(where, least=0)[0] if kind == "tcp" else ""
    if not target or is_loopback(target):
        return OwnPath()
    from migrator.core.migration.traffic_shaping import is_narrow  # noqa: PLC0415 - not within one machine
    from migrator.engine.path_speeds import PathSpeeds  # noqa: PLC0415 - likewise
    from migrator.store.learned_paths import LearnedPaths  # noqa: PLC0415 - likewise

    name, kept = source.host or _HERE, LearnedPaths()
    speeds = PathSpeeds(
        tell=lambda host, learned: None,
        keep=lambda host, document: kept.keep(host, document) if host == name else None,
        paces=is_narrow,
    )
    if (known := kept.document(name)) is not None:
        try:
            speeds.take_over(known)
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # written by another version: it is learned anew
    return speeds.stream(name, target)
