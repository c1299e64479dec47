"""Tokens, the check of the configuration, the doctor and the picture of a migration, as an operator types them."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import httpx2
import pytest

from migrator.pki.authority import Authority
from migrator.testing import network
from migrator.testing.lab import GuestMachine, Habit, Lab, until
from migrator.testing.site import LabSite
from tests.broker import Broker, mosquitto
from tests.certificates import make_directory, self_made, write_directory
from tests.conftest import missing
from tests.ports import free_port
from tests.sshd import Sshd

MIB = 1 << 20


def migrator(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "migrator", *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with a journal of its own, and no host."""
    path = tmp_path / "migrator.toml"
    path.write_text(
        f'[http]\nsocket = "api.sock"\nmetrics_listen = ""\n[store]\npath = "{tmp_path}/state/j.db"\n'
    )
    return path


# tokens


def test_token_is_shown_once_and_only_its_hash_is_kept(config: Path) -> None:
    made = migrator("token", "create", "grafana", "--role", "viewer", "--expires", "90d", "--config", config)
    assert made.returncode == 0, made
    token = made.stdout.strip()
    assert re.fullmatch(r"migrator_[0-9a-f]{12}_[0-9a-f]{64}", token)
    secret = token.rpartition("_")[2]
    assert secret not in made.stderr
    listed = migrator("token", "list", "--config", config)
    assert listed.returncode == 0
    assert "grafana\tviewer" in listed.stdout
    assert secret not in listed.stdout
    for file in (config.parent / "state").iterdir():
        assert secret.encode() not in file.read_bytes(), file


def test_token_document_list_and_end(config: Path) -> None:
    made = migrator("token", "create", "ops", "--role", "operator", "--config", config, "--json")
    document = json.loads(made.stdout)
    assert (document["name"], document["role"]) == ("ops", "operator")
    ends = datetime.fromisoformat(document["expires_at"]) - datetime.now(UTC)
    assert 89 <= ends.days < 90
    again = migrator("token", "create", "ops", "--role", "operator", "--config", config)
    assert again.returncode == 2
    assert "there is a valid token of the name 'ops'" in again.stderr
    assert migrator("token", "revoke", "ops", "--config", config).returncode == 0
    listed = json.loads(migrator("token", "list", "--config", config, "--json").stdout)["items"]
    assert [(each["id"], each["state"]) for each in listed] == [(document["id"], "revoked")]
    assert "token" not in listed[0]
    made = migrator(
        "token", "create", "drain", "--role", "operator", "--host", "rack-3-*", "--config", config
    )
    assert "there is no host rack-3-* in the configuration" in made.stderr
    listed = json.loads(migrator("token", "list", "--config", config, "--json").stdout)["items"]
    assert [each["hosts"] for each in listed] == [None, ["rack-3-*"]]
    gone = migrator("token", "revoke", "ops", "--config", config)
    assert gone.returncode == 2
    assert "migrator token list" in gone.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "--role", "boss"], "there are viewer and operator"),
        (
            ["a", "--role", "viewer", "--expires", "soon"],
            "--expires: 'soon' is not a duration: write it like 90d",
        ),
        (["a", "--role", "viewer", "--expires", "99999999999d"], "is more than can be meant"),
        (["a", "--role", "viewer", "--host", "no host"], "'no host' is no host's name, nor a pattern of one"),
    ],
)
def test_wrong_token_is_refused_in_one_line(config: Path, words: list[str], said: str) -> None:
    done = migrator("token", "create", *words, "--config", config)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_journal_of_another_is_said_to_be_so(config: Path) -> None:
    (config.parent / "state").mkdir()
    (config.parent / "state" / "j.db").write_bytes(b"no database at all, but long enough to be read" * 30)
    done = migrator("token", "list", "--config", config)
    assert done.returncode == 1
    assert "it is no database" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# config check


def test_example_is_fine(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "config" / "migrator.toml"
    done = migrator("config", "check", example)
    assert done.returncode == 0, done
    assert done.stdout.startswith(f"ok: {example}")
    for line in ("hosts     2 (2 over SSH)", "policies  night", "broker    none"):
        assert line in done.stdout
    document = json.loads(migrator("config", "check", example, "--json").stdout)
    assert (document["ok"], document["hosts"], document["broker"]) == (True, ["host-1", "host-2"], None)
    assert not list(tmp_path.glob("*.db"))


def test_every_problem_has_a_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        '[htp]\n[mqtt]\nusername = 3\n[[hosts]]\nname = "a b"\n[[hosts]]\nname = "c"\nlink_sped = "1"\n'
    )
    done = migrator("config", "check", path)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    for wanted in ("htp: ", "mqtt.username: ", "hosts[0].name: ", "hosts[1].link_sped: "):
        assert sum(f"{path}: {wanted}" in line for line in lines) == 1, (wanted, lines)
    assert json.loads(migrator("config", "check", path, "--json").stdout) == {
        "ok": False,
        "file": str(path),
        "problems": lines,
    }
    assert migrator("config", "check", MIGRATOR_CONFIG=str(path)).stdout == done.stdout


def test_files_that_are_named_and_are_not_there_are_missed_before_a_restart_is(tmp_path: Path) -> None:
    path = tmp_path / "migrator.toml"
    path.write_text(
        '[http]\nlisten = "0.0.0.0:8443"\ntls_certificate = "no.pem"\ntls_key = "no.key"\n'
        '[mqtt]\nhost = "b.example"\ntls = true\ntls_ca = "ca.pem"\n'
    )
    done = migrator("config", "check", path)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"http.tls_certificate: {tmp_path}/no.pem is not there",
        f"http.tls_key: {tmp_path}/no.key is not there",
        f"mqtt.tls_ca: {tmp_path}/ca.pem is not there",
    ]


def test_what_is_wrong_in_one_section_hides_nothing_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "migrator.toml"
    path.write_text(
        '[site]\nnam = "x"\n[http]\nlisten = "0.0.0.0:8443"\ntls_certificate = "no.pem"\ntls_key = "no.key"\n'
        '[mqtt]\nhost = "b.example"\nusername = "u"\npassword_file = "no.password"\n'
        '[policies.a]\nextends = "gentel"\nmax_downtime = "soon"\n[policies.b]\nextends = "c"\n'
        '[policies.c]\nmax_throttle = "much"\n'
    )
    done = migrator("config", "check", path)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    for wanted in (
        f"{path}: site.nam: ",
        f"{path}: policies.a.max_downtime: ",
        f"{path}: policies.a: extends: there is no policy 'gentel'",
        f"{path}: policies.c.max_throttle: ",
        f"{path}: mqtt.password_file: {tmp_path}/no.password cannot be read",
        f"http.tls_certificate: {tmp_path}/no.pem is not there",
        f"http.tls_key: {tmp_path}/no.key is not there",
    ):
        assert sum(line.startswith(wanted) for line in lines) == 1, (wanted, lines)
    assert len(lines) == 7, lines  # that b extends what is wrong itself is not wrong too


def test_nothing_of_a_secret_is_in_what_the_check_says(tmp_path: Path) -> None:
    path = tmp_path / "migrator.toml"
    path.write_text('[mqtt]\nhost = "b.example"\nusername = "u"\npassword = "hunter2-hunter2"\n')
    for words in (["config", "check", str(path)], ["config", "check", str(path), "--json"]):
        done = migrator(*words)
        assert done.returncode == 0
        assert "b.example:1883" in done.stdout
        assert "hunter2" not in done.stdout + done.stderr
    path.write_text('[mqtt]\nhost = "b.example"\npassword = ["hunter2-hunter2"]\n')
    done = migrator("config", "check", path)
    assert done.returncode == 2
    assert "hunter2" not in done.stdout + done.stderr


# doctor


def checks(config: Path, **environment: str) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    """What the doctor says: exit status, and by subject each level and text."""
    done = migrator("doctor", "--config", config, "--json", **environment)
    assert done.stderr == "", done
    document = json.loads(done.stdout)
    assert document["ok"] == (done.returncode == 0)
    found: dict[str, list[tuple[str, str]]] = {}
    for check in document["checks"]:
        line = f"{check['message']}; {check['remedy']}"
        assert "\n" not in line
        found.setdefault(check["about"], []).append((check["level"], line))
    return done.returncode, found


def said(found: dict[str, list[tuple[str, str]]], about: str, level: str, text: str) -> bool:
    return any(level == each and text in line for each, line in found.get(about, []))


def test_doctor_finds_what_is_missing_and_makes_nothing(config: Path) -> None:
    before = sorted(config.parent.rglob("*"))
    status, found = checks(config)
    assert status == 1
    assert said(found, "configuration", "fail", "names no host")
    assert said(found, "state directory", "warn", "is not there yet")
    assert said(found, "service", "warn", "it does not run; start it")
    assert said(found, "broker", "ok", "none is configured")
    assert sorted(config.parent.rglob("*")) == before


def test_doctor_says_what_is_wrong_with_the_configuration_and_ends(config: Path) -> None:
    config.write_text("[stor]\n")
    status, found = checks(config)
    assert status == 1
    assert list(found) == ["configuration"]
    assert "did you mean 'store'" in found["configuration"][0][1]


def test_doctor_finds_certificates_that_no_stream_can_be_encrypted_with(config: Path, tmp_path: Path) -> None:
    whole = Authority.make(tmp_path / "authority", site="test")
    make_directory(tmp_path / "good", whole, host="good", names=["good"])
    make_directory(tmp_path / "named", whole, host="other", names=["other"])
    write_directory(tmp_path / "old", *self_made(days=-1))
    with config.open("a", encoding="utf-8") as file:
        for name in ("good", "named", "old", "none"):
            prefix = f'prefix = ["env", "HOST={name}"]'
            file.write(f'[[hosts]]\nname = "{name}"\n{prefix}\nsockets = ["/none/{name}/*"]\n')
            file.write(f'look_for = "sockets"\ntls_dir = "{tmp_path}/{name}"\n')
    _, found = checks(config)
    assert said(found, "host old", "fail", "server-cert.pem has expired: no stream can be encrypted")
    assert said(found, "host named", "fail", "server-cert.pem is for other, not for named or 127.0.0.1")
    for name in ("good", "none"):
        assert not any("certificate" in line or ".pem" in line for _, line in found[f"host {name}"])


def test_doctor_finds_a_damaged_journal_and_leaves_it(config: Path) -> None:
    assert migrator("token", "list", "--config", config).returncode == 0
    journal = config.parent / "state" / "j.db"
    with closing(sqlite3.connect(journal)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET rootpage = 3 WHERE name = 'events'")
        database.commit()
    content = journal.read_bytes()
    status, found = checks(config)
    assert status == 1
    assert said(found, "journal", "fail", "put the last backup")
    assert journal.read_bytes() == content


def test_doctor_finds_secrets_that_all_may_read_and_files_of_others(config: Path) -> None:
    password = config.parent / "password"
    password.write_text("hunter2-hunter2\n")
    password.chmod(0o644)
    with config.open("a") as file:
        file.write(
            '[mqtt]\nhost = "127.0.0.1"\nport = 1\nusername = "migrator"\npassword_file = "password"\n'
        )
    assert migrator("token", "list", "--config", config).returncode == 0
    (config.parent / "state").chmod(0o755)
    if os.geteuid() == 0:
        os.chown(config.parent / "state" / "j.db", 65534, 65534)
    _, found = checks(config)
    assert said(found, "configuration", "warn", f"chmod o= {password}")
    assert said(found, "state directory", "warn", "chmod 700")
    assert said(found, "broker", "fail", "not connected")
    if os.geteuid() == 0:
        assert said(found, "state directory", "fail", "not of its owner: j.db; chown -R")
    assert "hunter2" not in str(found)


def test_doctor_finds_a_socket_that_makes_everybody_an_operator(config: Path) -> None:
    config.write_text(config.read_text().replace("[http]\n", '[http]\nsocket_mode = "0666"\n'))
    status, found = checks(config)
    assert status == 1
    assert said(found, "API socket", "fail", "everybody on this machine may open the API's socket")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker


def with_broker(config: Path, broker: Broker, user: str, password: str) -> None:
    text = config.read_text().partition("[mqtt]")[0]
    config.write_text(
        f'{text}[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\nusername = "{user}"\n'
        f'password = "{password}"\noperators = ["scheduler"]\ntimeout = "2s"\n'
    )
    config.chmod(0o600)


def test_doctor_tries_the_broker(config: Path, broker: Broker) -> None:
    with_broker(config, broker, "migrator", "m-secret")
    _, found = checks(config)
    assert said(found, "broker", "ok", "lets the service in, MQTT 5"), found
    with_broker(config, broker, "migrator", "wrong-secret")
    _, found = checks(config)
    assert said(found, "broker", "fail", "ot authori"), found
    assert "wrong-secret" not in str(found)
    with_broker(config, broker, "other", "o-secret")
    _, found = checks(config)
    assert said(found, "broker", "fail", "see its ACL"), found


def guest(name: str, **how: Any) -> GuestMachine:
    habit = Habit(region_bytes=16 * MIB, bytes_per_second=MIB)
    return GuestMachine(name=name, memory_bytes=128 * MIB, habit=habit, image_locking="off", **how)


@asynccontextmanager
async def served(*names: str, **how: Any) -> AsyncIterator[LabSite]:
    if (why := network.possible()) is not None:
        missing(why)
    with LabSite(*names, bytes_per_second=400 * MIB, **how) as site:
        site.serve()
        await site.until_served()
        yield site


def ask(site: LabSite, *words: str) -> Any:
    done = site.command(*words, "--json")
    assert done.returncode == 0, (done, site.log())
    return json.loads(done.stdout)


async def known(site: LabSite, count: int) -> None:
    await until(lambda: len(ask(site, "guests")["items"]) >= count, what="the guests", within=30)


async def test_doctor_of_a_whole_site_and_picture_of_a_migration(tmp_path: Path) -> None:
    folder = ("-blockdev", f"driver=vvfat,node-name=folder,dir={tmp_path},rw=on")
    async with served("a", "b", host_extra={"b": 'qemu = "/nowhere/qemu"\n'}) as site:
        await asyncio.gather(site.boot(guest("goes"), "a"), site.boot(guest("stays", extra=folder), "a"))
        await known(site, 2)
        status, found = await asyncio.to_thread(checks, site.config)
        assert status == 1
        assert said(found, "journal", "ok", "schema"), found
        assert said(found, "service", "ok", "answers at"), found
        assert said(found, "host a", "ok", "monitor"), found
        assert [line for level, line in found["host b"] if level == "fail"] == [
            "the configured qemu = '/nowhere/qemu' is not there; correct its path, or install it"
        ]
        assert not any(level == "fail" for level, _ in found["host a"]), found
        site.write_config()
        site.config.write_text(site.config.read_text().replace('qemu = "/nowhere/qemu"\n', ""))
        assert site.service is not None
        site.stop()
        status, found = await asyncio.to_thread(checks, site.config)
        assert status == 0, found
        assert said(found, "service", "warn", "it does not run"), found
        site.serve()
        await site.until_served()
        await known(site, 2)
        moved = await asyncio.to_thread(site.command, "migrate", "goes", "--to", "b", "--wait", "--json")
        assert moved.returncode == 0, (moved, site.log())
        picture = tmp_path / "run.svg"
        identifier = json.loads(moved.stdout)["id"]
        drawn = await asyncio.to_thread(site.command, "report", identifier, "-o", str(picture))
        assert drawn.returncode == 0, drawn
        assert ET.parse(picture).getroot().tag.endswith("svg")
        unknown = await asyncio.to_thread(site.command, "report", "nothing", "-o", str(picture))
        assert unknown.returncode == 2, unknown


def test_doctor_of_a_host_whose_clock_is_wrong_and_of_one_without_tools(config: Path, tmp_path: Path) -> None:
    for name, hour in (("fast", "date"), ("bare", "")):
        programs = tmp_path / name
        programs.mkdir()
        for path in Path("/usr/bin").iterdir():
            if path.name not in (hour, "setsid", "ss"):
                (programs / path.name).symlink_to(path)
    for needed in ("setsid", "ss"):
        (tmp_path / "fast" / needed).symlink_to(f"/usr/bin/{needed}")
    (tmp_path / "fast" / "date").write_text('#!/bin/sh\nexec /usr/bin/date -d "+1 hour" "$@"\n')
    (tmp_path / "fast" / "date").chmod(0o755)
    hosts = "".join(
        f'[[hosts]]\nname = "{name}"\nlook_for = "sockets"\nprefix = ["env", "PATH={tmp_path}/{name}"]\n'
        for name in ("fast", "bare")
    )
    config.write_text(f"{config.read_text()}\n{hosts}")
    status, found = checks(config)
    assert status == 1
    assert said(found, "host fast", "warn", "its clock is 60 min 0 s ahead of this machine's"), found
    assert said(found, "host bare", "fail", "install ss there (package iproute2)"), found


async def test_doctor_of_hosts_over_ssh(config: Path, tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd") as sshd, Lab() as lab:
        # What docs/install.md asks for, and no more.
        keys = tmp_path / "sshd" / "authorized_keys"
        keys.write_text(f'from="127.0.0.1",restrict,port-forwarding {keys.read_text()}')
        qemu = await lab.boot(guest("web"))
        base = f'ssh = "127.0.0.1:{sshd.port}"\nkey_file = "{sshd.key}"\naddress = "192.0.2.1"\n'
        trusted = f'{base}known_hosts = "{sshd.known_hosts}"\n'
        (lab.directory / "nothing").touch()
        hosts = {
            "good": f'{trusted}look_for = "sockets"\nsockets = ["{lab.directory}/*.qmp"]\nlink_speed = "10Gbit/s"\n',
            "stranger": f'{base}known_hosts = "/dev/null"\nlook_for = "sockets"\nsockets = ["/nowhere/*.qmp"]\n',
            "away": trusted.replace(f":{sshd.port}", f":{free_port()}"),
            "odd": f'{trusted}run_dir = "{lab.directory}/nothing/guests"\nqemu = "/nowhere"\n'.replace(
                "192.0.2.1", "127.0.0.1"
            ),
        }
        text = "".join(f'[[hosts]]\nname = "{name}"\n{lines}' for name, lines in hosts.items())
        config.write_text(f"{config.read_text()}\n[limits]\nssh_connect_timeout = 3\n{text}")
        before = sorted(tmp_path.rglob("*"))
        status, found = await asyncio.to_thread(checks, config)
        assert status == 1
        levels = {level for level, _ in found["host good"]}
        assert "fail" not in levels, found
        assert said(found, "host good", "ok", f"answers as {getpass.getuser()}"), found
        assert said(found, "host good", "ok", "1 monitor, link 1.2 GiB/s"), found
        assert not any("cannot move" in line for _, line in found["host good"]), found
        assert said(found, "host stranger", "fail", "add it with 'ssh-keyscan"), found
        assert said(found, "host away", "fail", "Connection refused"), found
        assert said(found, "host odd", "fail", "nothing/guests can neither be made nor written"), found
        assert said(found, "host odd", "fail", "qemu = '/nowhere' is not there"), found
        assert said(found, "host odd", "fail", "no other host reaches it"), found
        assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []
        # It neither disturbed the guest nor kept its monitor.
        assert await qemu.run_state() == "running"


# tokens at a service that runs


async def test_token_made_beside_a_service_holds_and_ends_at_once() -> None:
    port = free_port()
    with LabSite("a", isolated=False) as site:
        text = site.config.read_text().replace("[http]\n", f'[http]\nlisten = "127.0.0.1:{port}"\n')
        site.config.write_text(text)
        site.serve()
        await site.until_served()

        def get(token: str) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            url = f"http://127.0.0.1:{port}/api/v1/hosts"
            return httpx2.get(url, headers=headers, trust_env=False).status_code

        made = migrator("token", "create", "ci", "--role", "viewer", "--config", site.config)
        token = made.stdout.strip()
        assert get(token) == 200
        assert get(token[:-1] + ("0" if token[-1] != "0" else "1")) == 401
        listed = migrator("hosts", "--server", f"http://127.0.0.1:{port}", MIGRATOR_TOKEN=token)
        assert listed.returncode == 0, listed
        refused = migrator("activate", "a", "--server", f"http://127.0.0.1:{port}", MIGRATOR_TOKEN=token)
        assert refused.returncode == 2
        assert migrator("token", "revoke", "ci", "--config", site.config).returncode == 0
        assert get(token) == 401
