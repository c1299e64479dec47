"""Effect of a reload on each key: in force from when on, or not without a restart.

``docs/reload.md`` is made from it. A key that is missing here takes a restart, so that no change is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from migrator.settings.configuration import Settings
from migrator.settings.host_sections import HostSettings

#: In place of words: it takes a restart.
RESTART = ""

_AT_ONCE = "at once"
_NEXT_PLAN = "with the next plan, which is made at once; what is under way keeps what it began with"
_NEXT_START = "with the next destination that is started there"
_NEXT_LOOK = "with the next look at the host, which comes at once"
_RECONNECT = "with the next connection; the present one is given up as soon as no migration depends on it"
_NEXT_BEGUN = "for migrations that begin from then on"
_NEXT_POINT = "at the next point that a migration comes to"
_SAVED = "at the next time that the journal is cleaned, which comes within the old interval or the new one"

_HOST = {
    "key_file": _RECONNECT,
    "known_hosts": _RECONNECT,
    "sockets": _NEXT_LOOK,
    "look_for": _NEXT_LOOK,
    "qemu": f"{_NEXT_LOOK}; {_NEXT_START}",
    "run_dir": f"{_NEXT_LOOK}; {_NEXT_START}",
    "log_dir": _NEXT_START,
    "systemd": _NEXT_START,
    "start_timeout": _NEXT_START,
    "launch": _NEXT_START,
    "template": _NEXT_START,
    "attached": _NEXT_START,
    "link_speed": _NEXT_PLAN,
    "memory": _NEXT_PLAN,
    "memory_reserve": _NEXT_PLAN,
    "cpu_overcommit": _NEXT_PLAN,
    "labels": _NEXT_PLAN,
    "max_incoming": _NEXT_PLAN,
    "max_outgoing": _NEXT_PLAN,
    "ports": f"{_NEXT_PLAN}; {_NEXT_START}",
    "tls_dir": _NEXT_LOOK,
    "image_directories": f"{_NEXT_LOOK}; {_NEXT_START}",
    "image_template": f"{_NEXT_LOOK}; {_NEXT_START}",
    "saved_dir": _NEXT_PLAN,
    "libvirt": _NEXT_LOOK,
    "libvirt_peer_uri": _NEXT_BEGUN,
}
_GUEST_KEYS = (
    "match",
    "policy",
    "priority",
    "group",
    "anti_affinity",
    "requires",
    "movable",
    "ports",
    "accept",
)
_POLICY_KEYS = (
    *("extends", "max_downtime", "max_bandwidth", "max_throttle", "postcopy", "max_duration"),
    *(
        "last_resort",
        "block_jobs",
        "prefer",
        "start",
        "max_postcopy_stall",
        "max_shutdown",
        "disks",
        "source_images",
        "backing",
    ),
    *("tls", "stream", "streams", "compress"),
)
#: Of every key of every section, when it is in force after a reload, in words; :data:`RESTART`.
IN_FORCE: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "site": {
            "name": RESTART,
            "instance": RESTART,
            "default_policy": _NEXT_PLAN,
            "tls": _NEXT_PLAN,
            "pki_dir": RESTART,
            "log_format": _AT_ONCE,
            "log_level": _AT_ONCE,
            "page_url": RESTART,
            "runbook_url": RESTART,
            "stop_timeout": _AT_ONCE,
        },
        "http": {},
        "mqtt": {},
        "store": {
            **dict.fromkeys(("path", "url", "tls", "tls_ca", "tls_certificate", "tls_key"), RESTART),
            **dict.fromkeys(("password", "password_file"), RESTART),
            "retention": _SAVED,
            "prune_interval": _SAVED,
        },
        "controller": {"lease": RESTART},
        "traces": {},
        "limits": {
            "migrations_at_a_time": _NEXT_PLAN,
            "link_reserve": _NEXT_PLAN,
            "assumed_link_speed": _NEXT_PLAN,
            "sharing_at_a_time": _NEXT_PLAN,
            "prepared_per_source": _NEXT_PLAN,
            "prepared_per_target": _NEXT_PLAN,
            "attempts": _NEXT_PLAN,
            "first_pause": _NEXT_PLAN,
            "refresh_interval": _AT_ONCE,
            "stream_recovery": "for streams that are taken up from then on, by a migration or by a controller",
            "source_image_grace": "for guests that arrive from then on",
            "ssh_sessions": _AT_ONCE,
            "ssh_connect_timeout": "with the next connection",
            "ssh_keepalive": _AT_ONCE,
        },
        "placement": {"strategy": _NEXT_PLAN, "max_tries": _NEXT_PLAN},
        "host_defaults": _HOST,
        "hosts": {
            **_HOST,
            "name": RESTART,
            "ssh": RESTART,
            "prefix": RESTART,
            "address": f"{_NEXT_LOOK}; {_NEXT_START}",
        },
        "guests": dict.fromkeys(_GUEST_KEYS, _NEXT_LOOK),
        "hooks": dict.fromkeys(("point", "command", "name", "where", "timeout", "match"), _NEXT_POINT),
        "policies": dict.fromkeys(_POLICY_KEYS, _NEXT_BEGUN),
        "groups": dict.fromkeys(
            ("together", "wait", "otherwise"), "with the next plan, which is made at once"
        ),
    }
)


def when(section: str, key: str) -> str:
    """When a key is in force after a reload; :data:`RESTART`: not before a restart."""
    return IN_FORCE.get(section, {}).get(key, RESTART)


def changes(old: Settings, new: Settings) -> Iterator[tuple[str, str]]:
    """Each key that is different, as a person finds it, and when it is in force; see :func:`when`."""
    for section in ("site", "http", "mqtt", "store", "controller", "traces", "limits", "placement"):
        before, after = getattr(old, section), getattr(new, section)
        for key in type(before).model_fields:
            if getattr(before, key) != getattr(after, key):
                yield f"{section}.{key}", when(section, key)
    yield from _hosts(old, new)
    if old.guests != new.guests:
        yield "guests", when("guests", "match")
    if old.hooks != new.hooks:
        yield "hooks", when("hooks", "command")
    for name in sorted(old.policies.keys() | new.policies.keys()):
        if old.policies.get(name) != new.policies.get(name):
            yield f"policies.{name}", when("policies", "extends")
    for name in sorted(old.groups.keys() | new.groups.keys()):
        if old.groups.get(name) != new.groups.get(name):
            yield f"groups.{name}", when("groups", "wait")


def _hosts(old: Settings, new: Settings) -> Iterator[tuple[str, str]]:
    known: dict[str, HostSettings] = {host.name: host for host in old.hosts}
    for number, host in enumerate(new.hosts):
        before = known.pop(host.name, None)
        if before is None:
            yield f"hosts[{number}] (host {host.name} is new)", RESTART
            continue
        for key in type(host).model_fields:
            if getattr(before, key) != getattr(host, key):
                yield f"hosts[{number}].{key}", when("hosts", key)
    for name in known:
        yield f"hosts (host {name} is gone)", RESTART
