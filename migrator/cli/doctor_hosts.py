"""The host checks of ``migrator doctor``. They make and start nothing there, and take no monitor from a service."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from migrator.cli.diagnosis import DoctorCheck, fail, ok, warn
from migrator.cli.doctor_service import RunningService
from migrator.core.inventory import HostFacts
from migrator.core.managed_guest import DaemonAddress
from migrator.core.policy import TlsUse
from migrator.core.process.certificates import CLIENT_FILES, SERVER_FILES, HostCertificates
from migrator.errors import HostError, MigratorError
from migrator.hosts.access import HostAccess, Output
from migrator.hosts.facts import read_facts
from migrator.hosts.host_config import access, host_config
from migrator.hosts.sockets import FoundSocket, find_sockets
from migrator.libvirt import binding
from migrator.settings import Settings
from migrator.settings.host_sections import HostSettings
from migrator.site.from_settings import make_site
from migrator.site.libvirt_connections import find_daemons
from migrator.units import show_rate, show_seconds

_AT_ONCE = 8
_HOST_SECONDS = 60.0
_COMMAND_SECONDS = 20.0
#: Clocks further apart make logs and times of events hard to compare.
_CLOCK_SECONDS = 2.0
#: Certificates that expire sooner are worth a word: what renews them should have done so.
_EXPIRES_SECONDS = 30 * 86_400.0
#: Guests with an obstacle that are named, of one host.
_NAMED = 5
#: Programs without which a host cannot be used, and such that tell more.
_NEEDED, _USEFUL = ("ss", "find", "xargs", "stat", "setsid", "grep"), ("ip", "qemu-img", "getent")

# Arguments: run_dir and log_dir, or nothing for the usual ones, as they are where QEMUs are started.
_SCRIPT = rb"""
printf 'time %s\n' "$(date +%s.%N)"
printf 'user %s\n' "$(id -un)"
if [ "$(id -u)" = 0 ]; then r=/run s=/var/log
else r=${XDG_RUNTIME_DIR:-/tmp/migrator-$(id -u)} s=${XDG_STATE_HOME:-$HOME/.local/state}
fi
for d in "${1:-$r/migrator/guests}" "${2:-$s/migrator/guests}"; do
  n=$d
  while [ ! -e "$n" ] && [ "${n%/*}" != "$n" ]; do n=${n%/*}; done
  [ -d "${n:-/}" ] && [ -w "${n:-/}" ] && [ -x "${n:-/}" ] || printf 'closed %s\n' "$d"
done
[ "$(id -u)" = 0 ] || printf 'traces %s\n' "$(cat /proc/sys/kernel/yama/ptrace_scope 2>/dev/null || echo 0)"
printf 'unsent %s\n' "$(cat /proc/sys/net/ipv4/tcp_notsent_lowat 2>/dev/null)"
command -v python3 >/dev/null || printf 'no python3\n'
shift 2
for p; do command -v "$p" >/dev/null || printf 'missing %s\n' "$p"; done
printf 'end\n'
"""
#: So few bytes unsent in a socket need no option of their own.
_LITTLE_UNSENT = 1 << 20
_UNREADABLE = 'for p; do [ -r "$p" ] && [ -w "$p" ] || printf "%s\\0" "$p"; done'


@dataclass(frozen=True, kw_only=True)
class _HostFindings:
    """Facts that one host showed."""

    facts: HostFacts
    sockets: Sequence[FoundSocket]
    #: Sockets that this user may not open.
    closed: Sequence[str]
    said: str
    clock_seconds: float
    clock_error_seconds: float


async def hosts(settings: Settings, service: RunningService) -> AsyncIterator[list[DoctorCheck]]:
    """Yield the checks of every host, in the order of the configuration, several at a time."""
    limit = asyncio.Semaphore(_AT_ONCE)
    looks: list[_HostFindings] = []

    async def one(host: HostSettings) -> list[DoctorCheck]:
        async with limit:
            return await _host(host, settings, service, looks)

    tasks = [asyncio.create_task(one(host), name=f"doctor {host.name}") for host in settings.hosts]
    try:
        for task in tasks:
            yield await task
        # One host without guests is nothing to speak of.
        if looks and not any(each.listening for look in looks for each in look.sockets):
            remedy = "start QEMU with -qmp unix:/run/qemu/NAME.qmp,server=on,wait=off, or see sockets = [...]"
            yield [warn("hosts", "no QMP socket was found on any of them, so no guest is known", remedy)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _host(
    host: HostSettings, settings: Settings, service: RunningService, looks: list[_HostFindings]
) -> list[DoctorCheck]:
    about = f"host {host.name}"
    config = host_config(host, settings.hosts, settings.limits)
    host_access = access(config)
    try:
        async with asyncio.timeout(_HOST_SECONDS):
            look = await _look(host, host_access, config.sockets)
            looks.append(look)
            libvirt = await _libvirt(about, host_access, config.libvirt)
            obstacles = await _obstacles(host, settings, service)
    except TimeoutError:
        return [
            fail(
                about, f"it could not be looked at within {_HOST_SECONDS:g} s", "see its load and its network"
            )
        ]
    except HostError as error:
        text = str(error).removeprefix(f"host {host.name}: ")
        # Where the key is the matter, the text says what to do.
        remedy = "try the same by ssh, as this user" if text.startswith("no SSH connection") else ""
        return [fail(about, text, remedy)]
    finally:
        await host_access.close()
    complaints = [
        *_able(about, host, look),
        *_streams(about, host, look),
        *_qemus(about, host, look.facts),
        *_network(about, host, settings, look.facts),
        *_certificates(about, host, settings, look.facts.certificates),
        *_monitors(about, look),
        *libvirt,
        *obstacles,
    ]
    return [_summary(about, host, look), *complaints]


async def _look(host: HostSettings, host_access: HostAccess, patterns: Sequence[str]) -> _HostFindings:
    facts = await read_facts(
        host_access,
        address=host.addresses[0],
        qemus=[host.qemu] if host.qemu else [],
        tls_directory=host.tls_dir,
    )
    began, clock = time.monotonic(), time.time()
    words = ["sh", "-s", "--", host.run_dir, host.log_dir, *_NEEDED, *_USEFUL]
    output = await host_access.run(words, stdin=_SCRIPT, timeout=_COMMAND_SECONDS)
    took = time.monotonic() - began
    if not output.text.endswith("end\n"):
        raise HostError(host.name, f"its shell is not one of POSIX: {output.complaint or 'no answer'}")
    theirs = re.search(r"^time (\d+\.\d+)$", output.text, re.MULTILINE)
    sockets = await find_sockets(host_access, patterns)
    listening = [each.path for each in sockets if each.listening]
    closed = Output(status=0, stdout=b"", stderr=b"")
    if listening:
        closed = await host_access.run(["sh", "-c", _UNREADABLE, "sh", *listening], timeout=_COMMAND_SECONDS)
    return _HostFindings(
        facts=facts,
        sockets=sockets,
        closed=closed.text.split("\0")[:-1],
        said=output.text,
        # It was read somewhere between the question and the answer.
        clock_seconds=float(theirs[1]) - clock - took / 2 if theirs else 0.0,
        clock_error_seconds=took / 2,
    )


def _summary(about: str, host: HostSettings, look: _HostFindings) -> DoctorCheck:
    user = re.search(r"^user (.*)$", look.said, re.MULTILINE)
    versions = sorted(set(look.facts.qemus.values()))
    there = sum(each.listening for each in look.sockets)
    link = host.link_speed or look.facts.link_bytes_per_second
    return ok(
        about,
        f"answers as {user[1] if user else '?'}, QEMU {', '.join(versions) or 'none'}, "
        f"{there} monitor{'' if there == 1 else 's'}, link {show_rate(link) if link else 'unknown'}",
    )


def _able(about: str, host: HostSettings, look: _HostFindings) -> Iterable[DoctorCheck]:
    for path in re.findall(r"^closed (.*)$", look.said, re.MULTILINE):
        remedy = "log in as a user who may (ssh = root@...), or set run_dir and log_dir"
        yield fail(about, f"{path} can neither be made nor written there", remedy)
    missing = re.findall(r"^missing (.*)$", look.said, re.MULTILINE)
    if needed := [each for each in missing if each in _NEEDED]:
        yield fail(
            about, f"programs are missing: {', '.join(needed)}", "install iproute2, util-linux, findutils"
        )
    if useful := [each for each in missing if each in _USEFUL]:
        text = f"without {', '.join(useful)} less is known before a guest moves"
        yield warn(about, text, "install iproute2 and qemu-utils")
    if abs(look.clock_seconds) > _CLOCK_SECONDS + look.clock_error_seconds:
        ahead = "ahead of" if look.clock_seconds > 0 else "behind"
        text = f"its clock is {show_seconds(abs(look.clock_seconds))} {ahead} this machine's"
        yield warn(about, text, "let chrony or systemd-timesyncd set both")
    if host.systemd and not look.facts.systemd:
        yield fail(about, "systemd = true, but systemd does not run there", 'write systemd = "auto"')
    if not look.facts.userfaultfd:
        remedy = "sysctl vm.unprivileged_userfaultfd=1, or run QEMU as root"
        yield warn(about, "postcopy into it will not work: userfaultfd is not allowed", remedy)
    if not look.facts.kvm:
        yield warn(
            about, "/dev/kvm cannot be opened: guests are emulated", "see kvm-ok, or the rights of /dev/kvm"
        )


def _streams(about: str, host: HostSettings, look: _HostFindings) -> Iterable[DoctorCheck]:
    """Check whether the sockets of a migration's stream can be reached from outside."""
    why = []
    if host.ssh is not None and re.search(r"^no python3$", look.said, re.MULTILINE):
        why.append("there is no python3")
    if re.search(r"^traces [1-9]", look.said, re.MULTILINE):
        why.append("kernel.yama.ptrace_scope lets only root do it")
    unsent = re.search(r"^unsent (\d+)$", look.said, re.MULTILINE)
    if why and (unsent is None or int(unsent[1]) > _LITTLE_UNSENT):
        yield warn(
            about,
            f"the sockets of streams out of it cannot be given options ({'; '.join(why)}): what waits in them drains "
            "inside the downtime, 0.2 s of it at 60 Mbit/s",
            "log in as root there, install python3, or set sysctl net.ipv4.tcp_notsent_lowat=131072 on it",
        )


def _qemus(about: str, host: HostSettings, facts: HostFacts) -> Iterable[DoctorCheck]:
    if host.qemu and host.qemu not in facts.qemus:
        yield fail(
            about, f"the configured qemu = {host.qemu!r} is not there", "correct its path, or install it"
        )
    elif not facts.qemus and host.launch == "replicate":
        yield fail(about, "no QEMU was found there", "install it, or name it with qemu = ...")


def _network(about: str, host: HostSettings, settings: Settings, facts: HostFacts) -> Iterable[DoctorCheck]:
    others = len(settings.hosts) > 1
    if others and host.ssh is not None and re.match(r"127\.|::1$|localhost$", host.addresses[0]):
        text = f"address = {host.addresses[0]!r}: no other host reaches it with a migration there"
        yield fail(about, text, "give its address in the network for migrations")
    if host.link_speed is None and facts.link_bytes_per_second is None:
        assumed = show_rate(settings.limits.assumed_link_speed)
        text = f"the speed of its link cannot be read; {assumed} is assumed"
        yield warn(about, text, 'write link_speed = "10Gbit/s" for it')


def _certificates(
    about: str, host: HostSettings, settings: Settings, found: HostCertificates
) -> Iterable[DoctorCheck]:
    """Check whether streams from and to it can be encrypted, and for how long."""
    required = settings.site.tls is TlsUse.REQUIRE
    if not found.any:
        if required:
            remedy = f"migrator pki issue {host.name}"
            yield fail(about, f'site.tls = "require", and it has no certificates in {host.tls_dir}', remedy)
        return
    remedy = f"migrator pki renew {host.name}, or whoever made them makes new ones; docs/tls.md"
    for problem in found.problems:
        yield fail(about, f"{host.tls_dir}/{problem}: no stream can be encrypted", remedy)
    now = time.time()
    for file, certificate in ((SERVER_FILES[0], found.server), (CLIENT_FILES[0], found.client)):
        if certificate is not None and (problem := certificate.problem_at(now)):
            yield fail(about, f"{host.tls_dir}/{file} {problem}: no stream can be encrypted", remedy)
    names = host_config(host, settings.hosts, settings.limits).certificate_names
    if found.server is not None and not any(found.server.is_for(name) for name in names):
        text = f"{host.tls_dir}/{SERVER_FILES[0]} is for {', '.join(found.server.names)}, not for {' or '.join(names)}"
        yield fail(about, text, remedy)
    for side in ("source", "destination"):
        if files := found.missing(side):
            way = "out of" if side == "source" else "into"
            yield warn(about, f"streams {way} it are not encrypted: no {', '.join(files)} in {host.tls_dir}")
    left = (found.expires or now) - now
    if 0 < left < _EXPIRES_SECONDS:
        yield warn(about, f"certificates in {host.tls_dir} expire in {show_seconds(left)}", remedy)


def _monitors(about: str, look: _HostFindings) -> Iterable[DoctorCheck]:
    there = [each for each in look.sockets if each.listening]
    if look.closed:
        named = ", ".join(look.closed[:_NAMED])
        yield fail(
            about, f"this user may not open {named}", "log in as a user who may, or give it their group"
        )
    unknown = [each.path for each in there if each.pid is None and each.path not in look.closed]
    if unknown:
        text = f"which process listens at {', '.join(unknown[:_NAMED])} cannot be told"
        yield warn(
            about, text, "log in as root, or as the user that QEMU runs as: otherwise it cannot be fenced"
        )


async def _libvirt(
    about: str, host_access: HostAccess, address: DaemonAddress | None
) -> Sequence[DoctorCheck]:
    """Check whether guests of libvirt can be spoken with, where there may be any."""
    found = await find_daemons(host_access, address) if address is not None else []
    if address is None or (address.optional and not found):
        return []
    if not found:
        text = f"libvirt is configured, and there is no socket {' or '.join(address.sockets)}"
        return [fail(about, text, 'start its daemon there, or write libvirt = "off"')]
    if not binding.is_installed():
        text = (
            "its libvirt cannot be asked, nor its guests be moved: the Python binding is not installed here"
        )
        return [warn(about, text, "make install LIBVIRT=1, or pip install 'migrator[libvirt]'")]
    return []


async def _obstacles(
    host: HostSettings, settings: Settings, service: RunningService
) -> Iterable[DoctorCheck]:
    """Check what keeps guests there from moving: as the service says, or, where none answers, as their monitors do."""
    about = f"host {host.name}"
    if service.answers:
        known = [
            (guest["name"] or guest["guest"], guest["obstacle"])
            for guest in service.guests.get(host.name, [])
        ]
    else:
        site = make_site(settings)
        try:
            found = await site.look(host.name)
        except MigratorError as error:
            return [fail(about, f"its guests cannot be asked: {error}")]
        finally:
            await site.close()
        known = [(guest.label, guest.obstacle) for guest in found.guests]
    said = [
        # A name may be anything, and this is one line.
        warn(about, f"guest {' '.join(name.split())} cannot move: {' '.join(obstacle.split())}")
        for name, obstacle in known
        if obstacle
    ]
    if len(said) > _NAMED:
        more = warn(about, f"{len(said) - _NAMED} more guests cannot move", "migrator guests lists them")
        return [*said[:_NAMED], more]
    return said
