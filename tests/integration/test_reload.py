"""A reload is what it says: every key of the configuration is in force afterwards, or named as needing a restart."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from migrator import logs
from migrator.core.drain.limits import Otherwise
from migrator.core.hooks import HookPlace, HookPoint
from migrator.core.inventory import Guest
from migrator.core.placement import Strategy
from migrator.core.policy import (
    Backing,
    BlockJobs,
    Compression,
    CopiedDisks,
    LastResort,
    PostcopyMode,
    Preference,
    SourceImages,
    Start,
    StreamRoute,
    TlsUse,
    builtin,
)
from migrator.engine.controller import Engine
from migrator.errors import HostError, UsageError
from migrator.hosts.launch import Launcher
from migrator.hosts.local import LocalAccess
from migrator.hosts.ssh import SshAccess
from migrator.hosts.ssh_config import SshConfig
from migrator.service.garbage import GarbageCollection
from migrator.service.serve import Stop, _running
from migrator.settings import REPEATED, SECTIONS, LiveSettings, load
from migrator.settings.host_sections import HostDefaults
from migrator.settings.reloading import IN_FORCE, RESTART, when
from migrator.site.from_settings import ConfiguredSite
from tests.sshd import Sshd

WEB = Guest(key="k", host="a", name="web")
Value = str | tuple[str, ...]


@dataclass
class Service:
    """One that runs in this process, and its configuration."""

    directory: Path
    live: LiveSettings
    engine: Engine

    @property
    def site(self) -> ConfiguredSite:
        site = self.engine.services.site
        assert isinstance(site, ConfiguredSite)
        return site

    def write(self, changes: dict[str, str]) -> None:
        """The usual configuration with some keys instead."""
        write(self.directory, changes)

    def ssh(self) -> SshConfig:
        access = self.site.connections.access("s")
        assert isinstance(access, SshAccess)
        return access._config

    def host(self) -> Any:
        host = self.engine.inventory.host("a")
        assert host is not None
        return host


def write(directory: Path, changes: dict[str, str]) -> Path:
    tables: dict[str, dict[str, str]] = {
        "site": {"name": '"here"', "instance": '"one"'},
        "http": {"socket": f'"{directory}/api.sock"', "metrics_listen": '"127.0.0.1:0"'},
        "store": {"path": f'"{directory}/state/journal.db"'},
        "host_defaults": {"sockets": f'["{directory}/none/*.qmp"]', "look_for": '"sockets"'},
        "policies": {"max_downtime": '"1s"'},
        "guests": {"match": '"web"'},
        "hooks": {"point": '"before"', "command": '["/bin/x"]'},
        "hosts": {"name": '"a"'},
    }
    for dotted, text in changes.items():
        section, _, key = dotted.partition(".")
        tables.setdefault(section, {})[key] = text
    heads = {
        "policies": "[policies.p]",
        "groups": "[groups.g]",
        "guests": "[[guests]]",
        "hooks": "[[hooks]]",
        "hosts": "[[hosts]]",
    }
    lines = []
    for section, table in tables.items():
        lines += [heads.get(section, f"[{section}]"), *(f"{key} = {text}" for key, text in table.items())]
    lines += ["[[hosts]]", 'name = "s"', 'ssh = "nobody@127.0.0.1:1"']
    path = directory / "migrator.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Service]:
    path = write(directory, {})
    (directory / "state").mkdir()
    live = LiveSettings(load(path, environ={}), path)
    live.subscribe(lambda new: new.site, lambda site: lambda: log_as(site))
    async with _running(live, Stop(drain=False), GarbageCollection()) as engine:
        yield Service(directory, live, engine)
        await engine.stop(timeout=1.0)


def log_as(site: Any) -> None:
    logs.configure(verbose=False, json=site.log_format == "json", level=site.log_level)


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    before = logs._verbose, logs._json, logs._level
    yield
    logs._verbose, logs._json, logs._level = before
    logs._structlog.cache_clear()


Probe = Callable[[Service], Any]


def of_limits(name: str) -> Probe:
    return lambda service: getattr(service.engine.rules.limits, name)


def of_links(name: str) -> Probe:
    return lambda service: getattr(service.engine.rules.links, name)


def of_launch(name: str) -> Probe:
    return lambda service: getattr(service.site.how(WEB, "a").section, name)


def of_host(name: str) -> Probe:
    return lambda service: getattr(service.host(), name)


def of_guest(name: str) -> Probe:
    return lambda service: getattr(service.engine.inventory._rules(WEB), name)


def of_hook(name: str, *, point: HookPoint = HookPoint.BEFORE, guest: str = "web") -> Probe:
    """Of the hook that is due; ``None`` where there is none."""

    def probe(service: Service) -> Any:
        hooks = service.engine.services.hooks
        assert hooks is not None
        due = hooks.due(point, replace(WEB, name=guest))
        return getattr(due[0], name) if due else None

    return probe


def of_policy(name: str) -> Probe:
    return lambda service: getattr(service.engine.rules.policy("p"), name)


def of_group(name: str) -> Probe:
    return lambda service: getattr(service.engine.rules.groups.get("g"), name, None)


def settled(section: str, name: str) -> Probe:
    """Of what is read from the configuration in force each time that it is needed."""
    return lambda service: getattr(getattr(service.live.settings, section), name)


#: Of a key of a host, wherever it is written: another value, and what then is in force.
HOST: dict[str, tuple[str, Probe, Any]] = {
    "image_directories": (
        '{ fast = "/dev/vg0" }',
        lambda service: service.site.connections.config("a").image_directories,
        {"fast": "/dev/vg0"},
    ),
    "image_template": (
        '{ make = ["m", "{path}", "{size}"], remove = ["r", "{path}"] }',
        lambda service: service.site.connections.config("a").volumes,
        True,
    ),
    "tls_dir": ('"/t"', lambda service: service.site.connections.config("a").tls_dir, "/t"),
    "key_file": ('"/k"', lambda service: service.ssh().key, Path("/k")),
    "known_hosts": ('"/h"', lambda service: service.ssh().known_hosts, Path("/h")),
    "sockets": (
        '["/x/*"]',
        lambda service: service.site.connections.config("a").sockets,
        ("/x/*", "/run/migrator/guests/*/control.qmp"),
    ),
    "look_for": ('"processes"', lambda service: service.site.connections.config("a").processes, True),
    "qemu": ('"/usr/bin/q"', lambda service: service.site.connections.config("a").qemu, "/usr/bin/q"),
    "run_dir": ('"/r"', of_launch("run_dir"), "/r"),
    "log_dir": ('"/l"', of_launch("log_dir"), "/l"),
    "systemd": ("false", of_launch("systemd"), False),
    "start_timeout": ('"77s"', of_launch("start_timeout"), 77.0),
    "launch": ('"attached"', of_launch("launch"), "attached"),
    "template": ('["start", "{uuid}"]', of_launch("template"), ("start", "{uuid}")),
    "attached": ('"/a/{uuid}"', of_launch("attached"), "/a/{uuid}"),
    "link_speed": ('"1MiB/s"', of_host("link_bytes_per_second"), 1 << 20),
    "memory": ('"3GiB"', of_host("memory_bytes"), 3 << 30),
    "memory_reserve": ('"1GiB"', of_host("memory_reserve_bytes"), 1 << 30),
    "cpu_overcommit": ("1.5", of_host("cpu_overcommit_ratio"), 1.5),
    "labels": ('{ rack = "7" }', of_host("labels"), {"rack": "7"}),
    "max_incoming": ("2", of_host("max_incoming"), 2),
    "max_outgoing": ("3", of_host("max_outgoing"), 3),
    "saved_dir": ('"/s"', of_host("saved_dir"), "/s"),
    "ports": ('"any"', of_launch("ports"), "any"),
    "libvirt": ('"off"', lambda service: service.site.connections.config("a").libvirt, None),
    "libvirt_peer_uri": (
        '"qemu+tls://{name}/system"',
        lambda service: service.site.connections.config("a").libvirt_peer_uri,
        "qemu+tls://a/system",
    ),
}
#: Keys of a host that only one reached over SSH has.
OVER_SSH = frozenset({"key_file", "known_hosts"})
LIVE: dict[str, tuple[str, Probe, Any]] = {
    "site.tls": ('"require"', lambda service: service.engine.rules.policy("default").tls, TlsUse.REQUIRE),
    "site.default_policy": ('"gentle"', lambda service: service.engine.rules.default_policy, "gentle"),
    "site.log_format": ('"json"', lambda service: logs._json, True),
    "site.log_level": ('"error"', lambda service: logs._level, logging.ERROR),
    "site.stop_timeout": ('"7s"', settled("site", "stop_timeout"), 7.0),
    "store.retention": ('"2d"', settled("store", "retention"), 172_800.0),
    "store.prune_interval": ('"5m"', settled("store", "prune_interval"), 300.0),
    "limits.migrations_at_a_time": ("7", of_limits("migrations_at_a_time"), 7),
    "limits.link_reserve": ('"25%"', of_links("reserve_ratio"), 0.25),
    "limits.assumed_link_speed": ('"2MiB/s"', of_links("assumed_link_bytes_per_second"), 2 << 20),
    "limits.sharing_at_a_time": ("9", of_links("quiet_at_a_time"), 9),
    "limits.prepared_per_source": ("5", of_links("prepared_per_source"), 5),
    "limits.prepared_per_target": ("6", of_links("prepared_per_target"), 6),
    "limits.attempts": ("8", of_limits("attempts"), 8),
    "limits.first_pause": ('"1s"', of_limits("first_pause"), 1.0),
    "limits.refresh_interval": ('"11s"', lambda service: service.engine.inventory.schedule.interval, 11.0),
    "limits.ssh_sessions": ("3", lambda service: service.ssh().max_sessions, 3),
    "limits.ssh_connect_timeout": ('"3s"', lambda service: service.ssh().connect_seconds, 3.0),
    "limits.source_image_grace": (
        '"34m"',
        lambda service: service.engine.services.source_image_grace_seconds(),
        2040.0,
    ),
    "limits.stream_recovery": ('"33m"', lambda service: service.engine.services.recovery_seconds(), 1980.0),
    "limits.ssh_keepalive": ('"4s"', lambda service: service.ssh().keepalive_seconds, 4.0),
    "placement.strategy": ('"pack"', lambda service: service.engine.rules.placement.strategy, Strategy.PACK),
    "placement.max_tries": ("99", lambda service: service.engine.rules.placement.max_tries, 99),
    **{f"host_defaults.{key}": entry for key, entry in HOST.items()},
    **{f"hosts.{key}": entry for key, entry in HOST.items() if key not in OVER_SSH},
    "hosts.address": (
        '"10.66.0.9"',
        lambda service: service.site.connections.config("a").address,
        "10.66.0.9",
    ),
    "guests.match": (
        '"oth*"',
        lambda service: service.engine.inventory._rules(replace(WEB, name="other")).priority,
        4,
    ),
    "guests.policy": ('"gentle"', of_guest("policy"), "gentle"),
    "guests.priority": ("5", of_guest("priority"), 5),
    "guests.group": ('"g"', of_guest("group"), "g"),
    "guests.anti_affinity": ('"x"', of_guest("anti_affinity"), "x"),
    "guests.requires": ('{ rack = "1" }', of_guest("requires"), {"rack": "1"}),
    "guests.movable": ("false", of_guest("obstacle_code"), "not-movable"),
    "guests.ports": ('"any"', of_guest("ports"), "any"),
    "guests.accept": ('["tcg-loses-writes"]', of_guest("accept"), ("tcg-loses-writes",)),
    "groups.together": ("false", of_group("together"), False),
    "groups.wait": ('"3s"', of_group("wait_seconds"), 3.0),
    "groups.otherwise": ('"stay"', of_group("otherwise"), Otherwise.STAY),
    "hooks.point": ('"after"', of_hook("point", point=HookPoint.AFTER), HookPoint.AFTER),
    "hooks.command": ('["/bin/y", "1"]', of_hook("command"), ("/bin/y", "1")),
    "hooks.name": ('"it"', of_hook("name"), "it"),
    "hooks.where": ('"source"', of_hook("place"), HookPlace.SOURCE),
    "hooks.timeout": ('"3s"', of_hook("timeout_seconds"), 3.0),
    "hooks.match": ('["other"]', of_hook("point"), None),
    "policies.extends": (
        '"must-finish"',
        of_policy("max_throttle_ratio"),
        builtin("must-finish").max_throttle_ratio,
    ),
    "policies.max_downtime": ('"3s"', of_policy("max_downtime_seconds"), 3.0),
    "policies.max_bandwidth": ('"5MiB/s"', of_policy("max_bandwidth_bytes_per_second"), 5 << 20),
    "policies.max_throttle": ('"11%"', of_policy("max_throttle_ratio"), 0.11),
    "policies.postcopy": ('"never"', of_policy("postcopy"), PostcopyMode.NEVER),
    "policies.max_duration": ('"13m"', of_policy("max_duration_seconds"), 780.0),
    "policies.last_resort": ('"pause"', of_policy("last_resort"), LastResort.PAUSE),
    "policies.block_jobs": ('"refuse"', of_policy("block_jobs"), BlockJobs.REFUSE),
    "policies.prefer": ('"time"', of_policy("prefer"), Preference.TIME),
    "policies.start": ('"quiet"', of_policy("start"), Start.QUIET),
    "policies.max_postcopy_stall": ('"4s"', of_policy("max_postcopy_stall_seconds"), 4.0),
    "policies.max_shutdown": ('"4m"', of_policy("max_shutdown_seconds"), 240.0),
    "policies.disks": ('"none"', of_policy("disks"), CopiedDisks.NONE),
    "policies.source_images": ('"remove"', of_policy("source_images"), SourceImages.REMOVE),
    "policies.backing": ('"keep"', of_policy("backing"), Backing.KEEP),
    "policies.tls": ('"require"', of_policy("tls"), TlsUse.REQUIRE),
    "policies.stream": ('"ssh"', of_policy("stream"), StreamRoute.SSH),
    "policies.streams": ("4", of_policy("streams"), 4),
    "policies.compress": ('"zstd"', of_policy("compress"), Compression.ZSTD),
}
#: What goes with a key, so that the whole is right.
TOGETHER: dict[str, dict[str, str]] = {
    "hosts.launch": {"hosts.attached": '"/a/{uuid}"'},
    "host_defaults.launch": {"host_defaults.attached": '"/a/{uuid}"'},
    "guests.match": {"guests.priority": "4"},
}
#: Other values of keys that take a restart; those of numbers, sizes and durations are made.
OTHER: dict[str, str] = {
    "site.name": '"there"',
    "site.pki_dir": '"{directory}/pki"',
    "site.page_url": '"https://page.example"',
    "site.runbook_url": '"https://runbook.example"',
    "site.instance": '"two"',
    "store.path": '"{directory}/state/other.db"',
    "store.url": '"postgresql+asyncpg://migrator@db/migrator"',
    "store.tls": '"off"',
    "store.tls_ca": '"c"',
    "store.tls_certificate": '"c"',
    "store.tls_key": '"k"',
    "store.password": '"p"',
    "store.password_file": '"{directory}/password"',
    "hosts.name": '"c"',
    "hosts.ssh": '"h"',
    "hosts.prefix": '["env"]',
    "http.socket": '"{directory}/other.sock"',
    "http.socket_mode": '"0600"',
    "http.socket_owner": '"root"',
    "http.socket_group": '"root"',
    "http.listen": '"127.0.0.1:0"',
    "http.metrics_listen": '""',
    "http.tls_certificate": '"c"',
    "http.tls_key": '"k"',
    "http.hosts": '["h"]',
    "mqtt.host": '"broker"',
    "mqtt.port": "1884",
    "mqtt.tls": "true",
    "mqtt.tls_ca": '"c"',
    "mqtt.tls_certificate": '"c"',
    "mqtt.tls_key": '"k"',
    "mqtt.username": '"u"',
    "mqtt.password": '"p"',
    "mqtt.password_file": '"{directory}/password"',
    "mqtt.operators": '["o"]',
    "mqtt.viewers": '["v"]',
    "mqtt.resolvers": '["o"]',
    "mqtt.hosts": '{ o = ["c"] }',
    "mqtt.protocol": '"5"',
    "traces.endpoint": '"http://127.0.0.1:4318"',
    "traces.headers_file": '"{directory}/headers"',
    "traces.ca_file": '"{directory}/ca.pem"',
    "traces.sample_ratio": '"50%"',
}
_BELONG: dict[str, dict[str, tuple[str, ...]]] = {
    "http": {"tls_certificate": ("tls_key",), "tls_key": ("tls_certificate",)},
    "mqtt": {
        "tls_ca": ("tls",),
        "tls_certificate": ("tls",),
        "tls_key": ("tls", "tls_certificate"),
        "password": ("username",),
        "password_file": ("username",),
        "resolvers": ("operators",),
        "hosts": ("operators",),
    },
    "store": {
        **dict.fromkeys(("tls", "tls_ca", "tls_certificate", "password", "password_file"), ("url",)),
        "tls_key": ("url", "tls_certificate"),
    },
}
for section, keys in _BELONG.items():
    for key, with_ in keys.items():
        TOGETHER[f"{section}.{key}"] = {f"{section}.{each}": OTHER[f"{section}.{each}"] for each in with_}
TOGETHER["traces.headers_file"] = {"traces.endpoint": OTHER["traces.endpoint"]}
TOGETHER["traces.ca_file"] = {"traces.endpoint": '"https://127.0.0.1:4318"'}

MODELS = {**SECTIONS, **REPEATED}
KEYS = [f"{section}.{key}" for section, model in MODELS.items() for key in model.model_fields]


def other(service: Service, key: str) -> str:
    """A value of it that is not the present one."""
    if key in OTHER:
        return OTHER[key].replace("{directory}", str(service.directory))
    section, _, name = key.partition(".")
    present = getattr(getattr(service.live.settings, section), name)
    assert isinstance(present, (int, float)), (
        f"{key}: give it another value in OTHER, or what is in force in LIVE"
    )
    return str(int(present) + 7)


class TestEveryKey:
    def test_is_in_the_table_that_says_what_a_reload_does_with_it(self) -> None:
        """One that is not there takes a restart, which no key shall do because nobody thought of it."""
        whole = {"http", "mqtt", "traces"}  # they take a restart with all that is in them
        missing = [
            key
            for key in KEYS
            if (parts := key.split("."))[0] not in whole and parts[1] not in IN_FORCE[parts[0]]
        ]
        assert not missing, "add them to migrator/settings/reloading.py, and to LIVE or OTHER here"
        assert [
            key for section in IN_FORCE for key in IN_FORCE[section] if f"{section}.{key}" not in KEYS
        ] == []

    async def test_is_in_force_after_a_reload_or_named_as_one_that_takes_a_restart(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "password").write_text("p")
        (tmp_path / "headers").write_text("a: b\n")
        (tmp_path / "ca.pem").write_text("")
        live = [key for key in KEYS if when(*key.split(".", 1)) != RESTART]
        over_ssh = {f"hosts.{key}" for key in OVER_SSH}  # as in host_defaults
        assert set(live) - over_ssh == set(LIVE)
        async with serving(tmp_path) as service:
            for key, (text, probe, expected) in LIVE.items():
                service.write({})
                await service.live.reload()
                before = probe(service)
                service.write({**TOGETHER.get(key, {}), key: text})
                changed = dict(await service.live.reload())
                assert probe(service) == expected, key
                assert before != expected, f"{key} was so before"
                names = {
                    "host_defaults": "hosts[",
                    "hosts": "hosts[",
                    "policies": "policies.p",
                    "groups": "groups.g",
                    "guests": "guests",
                    "hooks": "hooks",
                }
                section = key.partition(".")[0]
                assert any(name.startswith(names.get(section, key)) for name in changed), key
            service.write({})
            await service.live.reload()
            for key in KEYS:
                if key in LIVE or key in over_ssh:
                    continue
                rules = service.engine.rules
                settings = service.live.settings
                # Nothing of it is taken over, though all but one could be.
                beside = {
                    name: value.replace("{directory}", str(tmp_path))
                    for name, value in TOGETHER.get(key, {}).items()
                }
                also = {"limits.attempts": "9", "hosts.max_incoming": "1"}
                service.write({**beside, key: other(service, key), **also})
                with pytest.raises(UsageError, match="takes a restart of the service") as refused:
                    await service.live.reload()
                shown = key.replace("hosts.", "hosts[0].") if key != "hosts.name" else "host c is new"
                assert f"{shown}" in str(refused.value), key
                assert service.engine.rules is rules
                assert service.host().max_incoming is None
                assert service.live.settings is settings

    async def test_of_what_is_wrong_nothing_is_taken_over(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as service:
            service.write({"limits.attempts": "9", "hosts.address": '"10.0.0.999"'})
            with pytest.raises(UsageError, match=r"hosts\[0\].address"):
                await service.live.reload()
            assert service.engine.rules.limits.attempts == 3


class TestHosts:
    async def test_sockets_of_other_patterns_are_watched_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "new").mkdir()
        async with serving(tmp_path) as service:
            site, seen = service.site, asyncio.Event()
            watching = asyncio.create_task(site.watch("a", seen.set), name="watch")
            try:
                await asyncio.sleep(0)
                service.write({"hosts.sockets": f'["{tmp_path}/new/*.qmp"]'})
                await service.live.reload()
                async with asyncio.timeout(10):
                    while not seen.is_set():
                        (tmp_path / "new" / "x.qmp").touch()
                        await asyncio.sleep(0.05)
                        (tmp_path / "new" / "x.qmp").unlink()
                        await asyncio.sleep(0.05)
            finally:
                watching.cancel()
                await asyncio.wait({watching})

    async def test_what_was_started_in_the_former_directory_is_still_ours(self, tmp_path: Path) -> None:
        with tempfile.TemporaryDirectory() as short:  # as the paths of sockets take it
            await self._started_in_the_former(tmp_path, short)

    async def _started_in_the_former(self, tmp_path: Path, short: str) -> None:
        old, new, log = f"{short}/old", f"{short}/new", f"{short}/log"
        before = await Launcher(LocalAccess("a"), HostDefaults(run_dir=old, log_dir=log)).make_run_directory(
            "m1"
        )
        launcher = Launcher(LocalAccess("a"), HostDefaults(run_dir=new, log_dir=log), former=[(old, log)])
        after = await launcher.make_run_directory("m1")
        assert {run_dir.path for run_dir in await launcher.run_directories_of("m1")} == {
            before.path,
            after.path,
        }
        assert await launcher.run_directory_at(f"{before.path}/control.qmp") == before
        async with serving(tmp_path) as service:
            service.write({"hosts.run_dir": f'"{new}"'})
            await service.live.reload()
            assert service.site.how(WEB, "a").former_directories == (("", ""),)
            service.write({})
            await service.live.reload()
            assert service.site.how(WEB, "a").former_directories == ((new, ""),)


class TestKeys:
    async def test_host_whose_key_is_not_known_any_more_is_not_spoken_to(self, tmp_path: Path) -> None:
        with Sshd(tmp_path / "sshd") as sshd:
            access = SshAccess("s", sshd.config())
            try:
                assert (await access.run(["true"])).status == 0
                unknown = tmp_path / "unknown"
                unknown.write_text("")
                access.configure(replace(sshd.config(), known_hosts=unknown))
                with pytest.raises(HostError, match="is not the one in"):
                    await access.run(["true"])
                access.configure(sshd.config())
                assert (await access.run(["true"])).status == 0
            finally:
                await access.close()

    async def test_connection_that_a_migration_depends_on_stays_till_it_ends(self, tmp_path: Path) -> None:
        sleeper = subprocess.Popen(["sleep", "600"])
        with Sshd(tmp_path / "sshd") as sshd:
            access = SshAccess("s", sshd.config())
            try:
                process = await access.process(sleeper.pid)
                assert process is not None
                unknown = tmp_path / "unknown"
                unknown.write_text("")
                access.configure(replace(sshd.config(), known_hosts=unknown))
                assert (await access.run(["true"])).status == 0
                process.close()
                with pytest.raises(HostError, match="is not the one in"):
                    await access.run(["true"])
            finally:
                await access.close()
                sleeper.kill()
                sleeper.wait()

    async def test_sessions_at_a_time(self, tmp_path: Path) -> None:
        with Sshd(tmp_path / "sshd") as sshd:
            access = SshAccess("s", sshd.config(max_sessions=1))
            try:
                first = asyncio.create_task(access.run(["sleep", "600"], timeout=60), name="first")
                while not access._running:
                    await asyncio.sleep(0.01)
                access.configure(sshd.config(max_sessions=2))
                assert (await access.run(["true"], timeout=20)).status == 0  # there is room for another now
                first.cancel()
                await asyncio.wait({first})
            finally:
                await access.close()
