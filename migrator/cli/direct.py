"""``migrator direct``: one migration between two QMP sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import ssl
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import NoReturn, TypeVar

from migrator import logs, units
from migrator.cli import Exit
from migrator.cli.direct_command import DirectCommand, Request
from migrator.cli.direct_guard import DirectGuard
from migrator.cli.direct_network import DirectGuestNetworks, listen_uri
from migrator.cli.direct_pair import GivenGuest, GivenPair, PairRecords
from migrator.cli.direct_paths import direct_path
from migrator.cli.direct_tls import DirectTls
from migrator.cli.over_ssh import OverSsh
from migrator.cli.recording import Recorder
from migrator.cli.show import Screen
from migrator.core.findings import accept
from migrator.core.model import Decision, State
from migrator.core.policy import (
    MOST_STREAMS,
    BlockJobs,
    Compression,
    CopiedDisks,
    LastResort,
    Policy,
    PostcopyMode,
    Preference,
    Start,
    StreamRoute,
    TlsUse,
    builtin,
    from_fields,
)
from migrator.engine.migration.guarding import GUARD
from migrator.engine.migration.outcome import MigrationOutcome, MigrationProgress
from migrator.engine.migration.services import SessionServices
from migrator.engine.migration.session import MigrationSession
from migrator.errors import Fault, MigratorError, QemuError, RecordError, Refused, Unreachable, UsageError
from migrator.machine import exists, this_driver
from migrator.qemu import address
from migrator.qemu.endpoint import Endpoint
from migrator.store.experience import FileExperience
from migrator.store.records import Unfinished, unfinished
from migrator.text import clean_lines

_EXITS = {
    State.COMPLETED: Exit.DONE,
    State.FAILED: Exit.FAILED,
    State.CANCELLED: Exit.CANCELLED,
    State.HELD: Exit.HELD,
    State.GUEST_ENDED: Exit.GUEST_ENDED,
}
_Choice = TypeVar("_Choice", bound=StrEnum)
_Value = TypeVar("_Value")


def main(command: DirectCommand) -> None:
    """Run it and exit with its code."""
    request, json_output = command.request, command.json
    gc.freeze()
    gc.enable()
    logs.configure(verbose=command.verbose)
    screen = Screen(quiet=json_output)
    try:
        with Recorder(command.record) as recorder:
            code = asyncio.run(_direct(request, screen, recorder, json_output=json_output))
    except (QemuError, Refused) as error:
        code = _refused(request, error, Exit.REFUSED, json_output=json_output)
    except MigratorError as error:
        code = _refused(request, error, Exit.USAGE, json_output=json_output)
    _leave(code)


def _leave(code: Exit) -> NoReturn:
    """End the process, without taking to pieces first what the system takes back at once."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # as one is that was closed before we began
                stream.flush()
    except OSError:
        sys.exit(code)  # which says what could not be written
    os._exit(code)


def _refused(request: Request, error: MigratorError, code: Exit, *, json_output: bool) -> Exit:
    print(f"migrator: {clean_lines(error)}", file=sys.stderr)
    if json_output:
        result = MigrationOutcome(id="", state=State.FAILED)
        with contextlib.suppress(
            UsageError
        ):  # else it is the policy that is refused, and there are no ceilings
            policy = _policy(request)
            result.max_downtime_seconds = policy.max_downtime_seconds
            result.max_postcopy_stall_seconds = policy.max_postcopy_stall_seconds
        print(json.dumps(result.document() | {"error": str(error)}))
    return code


async def _direct(request: Request, screen: Screen, recorder: Recorder, *, json_output: bool) -> Exit:
    if request.rescue:
        return await _rescue(request, screen, json_output=json_output)
    here, there = _both(request)
    policy = _policy(request)
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
        left = await _left_by_another(str(here or ""), str(there or ""), screen, over_ssh)
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
    left = await _left_by_another(str(here), str(there), screen, over_ssh)
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
    )
    records = PairRecords(left)

    def show_status(status: MigrationProgress) -> None:
        screen.status(status)
        recorder.status(status)

    def show_decision(_: MigrationSession, decision: Decision) -> None:
        screen.decision(decision)
        recorder.decision(decision)

    def begin(session: MigrationSession) -> None:
        screen.findings(session.result.findings)
        recorder.begin(policy, session.abilities)

    async def keep(_: MigrationSession) -> None:
        """Keep nothing beside its record."""

    session = MigrationSession(
        identifier=name,
        guest=GivenGuest(host=str(here), socket=str(here)),
        target=str(there),
        policy=from_fields(left.facts["policy"]) if left else policy,
        services=SessionServices(
            site=pair,
            records=records,
            accept=accept,
            keep=keep,
            experience=FileExperience(),
            shared_path=lambda source, target: direct_path(here, listen),
            claims_before_start=False,
            begins_anew=False,
        ),
        accepted=request.accept,
        on_status=show_status,
        on_decision=show_decision,
        on_ready=begin,
    )
    session.admit()  # nobody else has the links
    _cancel_on_signals(session, screen)
    try:
        if (taken_up := await records.take_up(name)) is not None:
            record, facts, intent = taken_up
            session.leave()
            session.places = await pair.reopen(facts)
            await session.go_on(record, facts, intent, pair.source, pair.destination)
        else:
            await session.drive()
    finally:
        records.close()
        await _close(pair, guard)
    if session.failure is not None and not isinstance(session.failure, Fault):
        if isinstance(session.failure, Unreachable):
            from migrator.cli.direct_moved import refuse_moved  # noqa: PLC0415 - seldom needed

            await refuse_moved(str(here), str(there), over_ssh)
        raise session.failure
    result = session.result
    _say_what_next(result, screen)
    refused = session.refused and result.state is State.FAILED
    if refused:
        result.error = "refused by preflight; nothing was changed"
    screen.result(result)
    if not refused:
        recorder.result(result)
    if json_output:
        print(json.dumps(result.document()))
    return Exit.REFUSED if refused else _EXITS[result.state]


async def _close(pair: GivenPair, guard: DirectGuard | None) -> None:
    await pair.close()
    if guard is not None:
        await guard.close()


def _say_what_next(result: MigrationOutcome, screen: Screen) -> None:
    """Say what a guest takes to move that a guard has had go on at the source."""
    if result.state is State.CANCELLED and any(each.action == GUARD for each in result.decisions):
        screen.line("to move it, start another destination and type this again")


async def _left_by_another(
    source: str, destination: str, screen: Screen, over_ssh: OverSsh
) -> Unfinished | None:
    """The record of an unfinished migration of this pair; one that concerns only one of them is a refusal.

    A record of which both processes are gone has nothing left to act on and is put away.
    """
    mine: Unfinished | None = None
    for left in unfinished():
        pair = (left.facts["source"]["address"], left.facts["destination"]["address"])
        if source not in pair and destination not in pair:
            continue
        gone = [
            await over_ssh.is_gone(address.parse(where), left.facts[side]["identity"])
            for where, side in zip(pair, ("source", "destination"), strict=True)
        ]
        if all(gone):
            left.claim().put_away({"state": "both processes are gone"})
            screen.line(
                f"an unfinished migration from {pair[0]} to {pair[1]} has ended with both of its processes, and the "
                "guest with them, unless somebody moved it on; its record is put away in "
                f"{left.record.directory / 'ended'}"
            )
        elif pair == (source, destination):
            mine = left
        else:
            raise RecordError(
                f"an unfinished migration from {pair[0]} to {pair[1]} concerns one of these; end it first: "
                f"migrator direct --source {pair[0]} --destination {pair[1]} (its record is {left.record.path})"
            )
    return mine


def _cancel_on_signals(session: MigrationSession, screen: Screen) -> None:
    def asked() -> None:
        if session.cancel():
            screen.line("cancelling; the guest stays where it is")
        else:
            screen.line("too late to cancel: past the switch, the migration is being finished")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked)


def _policy(request: Request) -> Policy:
    auto = request.max_bandwidth in (None, "auto")
    return builtin(request.policy).but(
        max_downtime_seconds=_option("--max-downtime", request.max_downtime, units.seconds),
        max_bandwidth_bytes_per_second=None
        if auto
        else _option("--max-bandwidth", request.max_bandwidth, units.rate),
        max_throttle_ratio=_option("--max-throttle", request.max_throttle, units.ratio),
        postcopy=_choice("--postcopy", request.postcopy, PostcopyMode),
        max_duration_seconds=_option("--max-duration", request.max_duration, units.seconds),
        last_resort=_choice("--last-resort", request.last_resort, LastResort),
        block_jobs=_choice("--block-jobs", request.block_jobs, BlockJobs),
        prefer=_choice("--prefer", request.prefer, Preference),
        start=_choice("--start", request.start, Start),
        max_postcopy_stall_seconds=_option("--max-postcopy-stall", request.max_postcopy_stall, units.seconds),
        tls=_choice("--tls", request.tls, TlsUse),
        stream=_choice("--stream", request.stream, StreamRoute),
        streams=None
        if request.streams in (None, "auto")
        else _option("--streams", request.streams, _streams),
        compress=_choice("--compress", request.compress, Compression),
        disks=_choice("--disks", request.disks, CopiedDisks),
    )


def _streams(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"{text!r} is no count: give 1 to {MOST_STREAMS}, or auto")
    return int(text)


def _option(flag: str, text: str | None, read: Callable[[str], _Value]) -> _Value | None:
    if text is None:
        return None
    try:
        return read(text)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from None


def _choice(flag: str, text: str | None, kind: type[_Choice]) -> _Choice | None:
    if text is None or text in set(kind):
        return None if text is None else kind(text)
    raise UsageError(f"{flag}: {text!r} is none of {', '.join(kind)}")


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
