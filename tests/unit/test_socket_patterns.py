"""Where a host's guests are looked for: as configured, and always where migrator starts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.hosts.host_config import HostConfig, host_config
from migrator.settings import load

MOVED = "/run/migrator/guests/*/control.qmp"


def patterns(directory: Path, hosts: str) -> dict[str, tuple[str, ...]]:
    """By host, of a configuration with these hosts."""
    file = directory / "migrator.toml"
    file.write_text(hosts, encoding="utf-8")
    settings = load(file)
    return {host.name: host_config(host, settings.hosts, settings.limits).sockets for host in settings.hosts}


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ("", ("/run/qemu/*.qmp", MOVED)),
        ('sockets = ["/run/vm/*.sock"]', ("/run/vm/*.sock", MOVED)),
        (
            'sockets = ["/run/vm/*.sock"]\nrun_dir = "/srv/mig"',
            ("/run/vm/*.sock", "/srv/mig/*/control.qmp"),
        ),
        ('sockets = ["/srv/mig/*/control.qmp"]\nrun_dir = "/srv/mig"', ("/srv/mig/*/control.qmp",)),
        (
            'run_dir = "/srv/mig[1]"',
            ("/run/qemu/*.qmp", MOVED, "/srv/mig[[]1]/*/control.qmp"),
        ),
    ],
    ids=["defaults", "other sockets", "other directory too", "named already", "a name with brackets"],
)
def test_a_guest_that_was_moved_to_a_host_is_found_there_whatever_sockets_are_configured(
    tmp_path: Path, keys: str, found: tuple[str, ...]
) -> None:
    assert patterns(tmp_path, f'[[hosts]]\nname = "a"\nssh = "root@a"\n{keys}\n') == {"a": found}


def test_hosts_on_one_machine_that_share_a_run_directory_keep_to_what_is_configured(tmp_path: Path) -> None:
    hosts = "".join(
        f'[[hosts]]\nname = "{name}"\nprefix = ["ip", "netns", "exec", "{name}"]\nsockets = ["/run/{name}/*.qmp"]\n'
        for name in ("a", "b")
    )
    assert patterns(tmp_path, hosts) == {"a": ("/run/a/*.qmp",), "b": ("/run/b/*.qmp",)}


def test_a_host_of_which_nothing_is_said_is_the_same_with_and_without_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "migrator.toml"
    file.write_text('[[hosts]]\nname = "a"\nlibvirt = "off"', encoding="utf-8")
    settings = load(file)
    assert host_config(settings.hosts[0], settings.hosts, settings.limits) == HostConfig(name="a")
