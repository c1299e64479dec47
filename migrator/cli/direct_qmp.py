"""``migrator direct`` between two QEMUs that are named by their monitors."""

from __future__ import annotations

import os
import ssl

from migrator.cli import Exit
from migrator.cli.direct_command import Request
from migrator.cli.direct_drive import PairCommand, drive
from migrator.cli.direct_guard import DirectGuard
from migrator.cli.direct_left import left_by_another
from migrator.cli.direct_network import DirectGuestNetworks, listen_uri
from migrator.cli.direct_pair import GivenGuest, GivenPair
from migrator.cli.direct_paths import direct_path
from migrator.cli.direct_policy import policy_of, wait_seconds
from migrator.cli.direct_tls import DirectTls
from migrator.cli.over_ssh import OverSsh
from migrator.cli.recording import Recorder
from migrator.cli.show import Screen
from migrator.core.findings import accept
from migrator.core.policy import Policy
from migrator.engine.migration import driver as _driver  # noqa: F401 - loaded before anything is opened
from migrator.errors import Unreachable, UsageError
from migrator.machine import exists, this_driver
from migrator.qemu import address
from migrator.qemu.endpoint import Endpoint


async def direct(request: Request, screen: Screen, recorder: Recorder, *, json_output: bool) -> Exit:
    """Move one guest, or rescue one, as the options say.

    :raise MigratorError: nothing was changed.
    """
    if request.rescue:
        return await _rescue(request, screen, json_output=json_output)
    here, there = _both(request)
    policy = policy_of(request)
    accept((), request.accept)  # before anybody is asked
    if request.destination_pid is not None:
        if there.kind == "ssh":
            raise UsageError("--destination-pid is of this machine; over ssh: the process is found by itself")
        if not exists(request.destination_pid):
            raise UsageError(
                f"--destination-pid: there is no process {request.destination_pid} on this machine"
            )
    over_ssh = OverSsh()
    try:
        return await _between(here, there, request, policy, screen, recorder, over_ssh, json_output)
    finally:
        await over_ssh.close()


def _both(request: Request) -> tuple[address.Address, address.Address]:
    for flag, given in (("--source", request.source), ("--destination", request.destination)):
        if given is None:
            raise UsageError(f"{flag} is missing")
    for flag, said in (("--guest-at", request.guest_at), ("--run-state", request.run_state)):
        if said is not None:
            raise UsageError(f"{flag} is for --rescue")
    here, there = address.parse(request.source or ""), address.parse(request.destination or "")
    if here == there:
        raise UsageError(f"--source and --destination are the same: {here}")
    return here, there


async def _rescue(request: Request, screen: Screen, *, json_output: bool) -> Exit:
    from migrator.cli import rescue  # noqa: PLC0415 - seldom needed

    here, there = rescue.parse(request)
    over_ssh = OverSsh()
    try:
        left = await left_by_another(str(here or ""), str(there or ""), screen, over_ssh.has_gone_from)
        given = [where for where in (here, there) if where is not None]
        one = rescue.Rescue(
            request, here, there, left=left, over_ssh=over_ssh, tls=_tls(request, *given), screen=screen
        )
        return await one.run(json_output=json_output)
    finally:
        await over_ssh.close()


async def _between(
    here: address.Address,
    there: address.Address,
    request: Request,
    policy: Policy,
    screen: Screen,
    recorder: Recorder,
    over_ssh: OverSsh,
    json_output: bool,
) -> Exit:
    listen = listen_uri(request.listen, there)
    left = await left_by_another(str(here), str(there), screen, over_ssh.has_gone_from)
    tls = _tls(request, here, there)
    name = left.record.path.stem if left else os.urandom(6).hex()
    driver = this_driver("migrator direct", controller=name)
    by_force = request.take_over
    guard = DirectGuard.of(here, over_ssh)
    pair = GivenPair(
        Endpoint(
            here,
            role="source",
            tls=tls,
            transport=over_ssh.transport(here),
            driver=driver,
            by_force=by_force,
            guard_process=guard,
        ),
        Endpoint(
            there,
            role="destination",
            pid=request.destination_pid,
            fence_command=request.fence_command,
            tls=tls,
            transport=over_ssh.transport(there),
            driver=driver,
            by_force=by_force,
        ),
        networks=DirectGuestNetworks(over_ssh, here, there),
        tls=DirectTls(over_ssh, here, there, directory=request.tls_dir, name=request.tls_name, listen=listen),
        listen=listen,
        tell=screen.line,
        wait_seconds=wait_seconds(request),
    )
    command = PairCommand(
        source=str(here),
        destination=str(there),
        guest=GivenGuest(host=str(here), socket=str(here)),
        policy=policy,
        accepted=request.accept,
        shared_path=lambda: direct_path(here, listen),
        left=left,
        name=name,
    )
    try:
        return await drive(pair, command, screen, recorder, json_output=json_output)
    except Unreachable:
        from migrator.cli.direct_moved import refuse_moved  # noqa: PLC0415 - seldom needed

        await refuse_moved(str(here), str(there), over_ssh)
        raise
    finally:
        if guard is not None:
            await guard.close()


def _tls(request: Request, *addresses: address.Address) -> ssl.SSLContext | None:
    given = {"--tls-ca": request.tls_ca, "--tls-cert": request.tls_cert, "--tls-key": request.tls_key}
    if all(where.kind != "tls" for where in addresses):
        if used := [flag for flag, path in given.items() if path is not None]:
            raise UsageError(f"{used[0]} is for tls: addresses, and neither monitor has one")
        return None
    if (request.tls_cert is None) != (request.tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together: give both or neither")
    from migrator.tls import File, client_context  # noqa: PLC0415 - seldom needed

    ca, certificate, key = (
        File(name=flag, path=path) if path is not None else None for flag, path in given.items()
    )
    return client_context(ca=ca, certificate=certificate, key=key)
