"""``migrator direct`` with a guest of libvirt: its libvirt and the target's carry the move out, and this decides.

Its time is what it takes until libvirt begins: both daemons are asked first, and what drives the move is loaded while
they find their answers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from migrator.addresses import host_port
from migrator.cli import Exit, collect_garbage
from migrator.cli.direct_command import DirectCommand, Request
from migrator.cli.direct_network import listen_uri
from migrator.cli.direct_policy import policy_of
from migrator.cli.direct_tls import DirectTls
from migrator.cli.libvirt_address import LibvirtAddress, parse
from migrator.cli.libvirt_pair import LibvirtPair
from migrator.cli.over_ssh import OverSsh
from migrator.core.findings import accept
from migrator.core.policy import Policy
from migrator.errors import Unreachable, UsageError

#: Options about monitors, of which a guest of libvirt has none that is ours.
_OF_MONITORS = ("wait", "destination_pid", "fence_command", "tls_ca", "tls_cert", "tls_key", "take_over")

#: Modules that are loaded while daemons and hosts find their answers.
_LATER = (
    "migrator.cli.direct_drive",
    "migrator.cli.direct_left",
    "migrator.engine.migration.managed_driver",
    "migrator.engine.path_speeds",
    "migrator.store.learned_paths",
)


async def direct(command: DirectCommand) -> Exit:
    """Move one guest of libvirt, as the options say.

    :raise MigratorError: nothing was changed.
    """
    request = command.request
    here, there = _both(request)
    policy = policy_of(request)
    accept((), request.accept)  # before anybody is asked
    listen = listen_uri(request.listen, there.socket_address)
    if host_port(listen.partition(":")[2], least=0)[1]:
        raise UsageError("--listen: libvirt chooses the port of its streams: write tcp:ADDR:0")
    over_ssh = OverSsh()
    pair = LibvirtPair(
        here,
        there,
        over_ssh,
        tls=DirectTls(
            over_ssh,
            here.socket_address,
            there.socket_address,
            directory=request.tls_dir,
            name=request.tls_name,
            listen=listen,
        ),
        listen=listen,
    )
    try:
        pair.look_ahead(policy)
        await asyncio.to_thread(_load)  # beside the answers
        collect_garbage()
        return await _move(command, here, there, pair, policy, listen)
    finally:
        await pair.close()
        await over_ssh.close()


def _load() -> None:
    """Load what drives a migration, and tells of it."""
    for module in _LATER:
        __import__(module)  # as `python -X importtime` shows it


async def _move(
    command: DirectCommand,
    here: LibvirtAddress,
    there: LibvirtAddress,
    pair: LibvirtPair,
    policy: Policy,
    listen: str,
) -> Exit:
    from migrator.cli.direct_drive import PairCommand, drive  # noqa: PLC0415 - loaded by :func:`_load`
    from migrator.cli.direct_left import left_by_another  # noqa: PLC0415 - likewise
    from migrator.cli.direct_paths import direct_path  # noqa: PLC0415 - likewise
    from migrator.cli.recording import Recorder  # noqa: PLC0415 - likewise
    from migrator.cli.show import Screen  # noqa: PLC0415 - likewise

    request, screen = command.request, Screen(quiet=command.json)
    left = await left_by_another(str(here), str(there), screen, _never_gone)
    try:
        guest = await pair.find(left.facts if left is not None else None)
        move = PairCommand(
            source=str(here),
            destination=str(there),
            guest=guest,
            policy=policy,
            accepted=request.accept,
            shared_path=lambda: direct_path(here.socket_address, listen),
            left=left,
            name=left.record.path.stem if left is not None else os.urandom(6).hex(),
        )
        with Recorder(command.record) as recorder:
            return await drive(pair, move, screen, recorder, json_output=command.json)
    except Unreachable:
        if left is None:
            from migrator.cli.direct_moved import refuse_moved_there  # noqa: PLC0415 - seldom needed

            await refuse_moved_there(str(here), str(there), pair.arrived)
        raise


def _both(request: Request) -> tuple[LibvirtAddress, LibvirtAddress]:
    for flag, given in (("--source", request.source), ("--destination", request.destination)):
        if given is None:
            raise UsageError(f"{flag} is missing")
        if not given.startswith("qemu"):
            raise UsageError(
                f"{flag}: {given!r} is no libvirt, and a guest of libvirt moves to another one: write "
                "qemu:///system or qemu+ssh://HOST/system"
            )
    if request.rescue or request.guest_at is not None or request.run_state is not None:
        raise UsageError(
            "--rescue is for guests at QMP addresses: what a move of libvirt's left is ended with virsh, and then "
            "by this command again"
        )
    for name in _OF_MONITORS:
        if getattr(request, name) not in (None, False):
            raise UsageError(
                f"--{name.replace('_', '-')} is for QMP addresses, and a guest of libvirt has none"
            )
    here, there = parse(request.source or ""), parse(request.destination or "")
    if not here.guest:
        raise UsageError(f"--source: {here} names no guest: add ?guest=NAME")
    if there.guest not in ("", here.guest):
        raise UsageError(f"--destination: a guest keeps its name: leave guest={there.guest} out")
    there = replace(there, guest=here.guest)
    if here == there:
        raise UsageError(f"--source and --destination are the same: {here.site_name}")
    return here, there


async def _never_gone(where: str, identity: Mapping[str, Any]) -> bool:
    """Return False: a guest of libvirt outlives its process."""
    return False
