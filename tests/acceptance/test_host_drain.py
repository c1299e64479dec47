"""The unit of contrib/systemd: what it runs when a host goes down and when it has booted, against a live service."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Activate, Cordon, Evacuate
from tests.conftest import missing
from tests.http_service import OF_ALPHA, OF_BETA, OPERATOR
from tests.service_thread import ServiceThread, in_thread

FILES = Path(__file__).parents[2] / "contrib" / "systemd"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceThread]:
    with in_thread(tmp_path) as service:
        yield service


class HostUnit:
    """The commands of the unit on a host of a test: ``systemctl`` says there what the system does."""

    def __init__(self, place: Path, server: str) -> None:
        self._place, self._server = place, server
        place.mkdir()
        self.system("stopping")

    def system(self, state: str) -> None:
        """Have it run, or shut down (``stopping``)."""
        (self._place / "systemctl").write_text(f"#!/bin/sh\necho {state}\n")
        (self._place / "systemctl").chmod(0o755)

    def begin(
        self, verb: str, *options: str, host: str = "alpha", token: str = OPERATOR
    ) -> subprocess.Popen[str]:
        file = self._place / f"token-of-{host}"
        file.write_text(f"{token}\n")
        given = {"host": host, "server": self._server, "token-file": str(file)}
        given |= {"state": f"{self._place}/{host}", "settle": "0", "poll": "0.05", "timeout": "5"}
        return subprocess.Popen(
            [
                *(sys.executable, str(FILES / "migrator-drain"), verb),
                *(f"--{name}={value}" for name, value in given.items()),
                *options,
            ],
            env={**os.environ, "PATH": f"{self._place}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, verb: str, *options: str, host: str = "alpha", token: str = OPERATOR) -> tuple[int, str]:
        """Return the exit code and what was said."""
        with self.begin(verb, *options, host=host, token=token) as process:
            said, _ = process.communicate(timeout=60)
        return process.returncode, said


@pytest.fixture
def unit(service: ServiceThread, tmp_path: Path) -> HostUnit:
    return HostUnit(tmp_path / "host", service.place.url)


def host(service: ServiceThread, name: str = "alpha") -> Any:
    return service.do(lambda running: running.queries.host(name))


def test_host_that_goes_down_is_emptied_and_filled_again_after_its_boot(
    service: ServiceThread, unit: HostUnit
) -> None:
    unit.system("running")
    assert unit.run("down") == (0, "migrator-drain: the system is not shutting down: nothing is moved\n")
    assert host(service).state == "active"

    unit.system("stopping")
    code, said = unit.run("down")
    assert code == 0, said
    assert (host(service).state, host(service).guests) == ("maintenance", 0)
    assert unit.run("down") == (0, "migrator-drain: alpha is empty\n")

    code, said = unit.run("up")
    assert code == 0, said
    assert "brings 3 guest(s) home" in said
    service.until(lambda running: not running.queries.active_evacuations(), "its guests are home")
    assert (host(service).state, host(service).guests) == ("active", 3)
    assert unit.run("up") == (0, "")


def test_host_that_somebody_emptied_stays_empty_after_its_boot(
    service: ServiceThread, unit: HostUnit
) -> None:
    assert unit.run("down")[0] == 0
    assert unit.run("up")[0] == 0
    service.until(lambda running: not running.queries.active_evacuations(), "its guests are home")
    service.ask(Evacuate(host="alpha"))
    service.until(lambda running: not running.queries.active_evacuations(), "it is empty")
    assert unit.run("down") == (0, "migrator-drain: alpha is empty\n")
    assert unit.run("up") == (0, "")
    assert host(service).state == "maintenance"


def test_names_of_guests_do_not_act_in_the_hosts_journal(service: ServiceThread, unit: HostUnit) -> None:
    for each in service.service.site.hosts.values():
        each.start_seconds = 600.0
    code, said = unit.run("down", "--seconds=8")
    assert code == 1
    assert "<img src=x onerror=alert(1)>[red] [31m" in said, (
        "it is among those who are left, without its escape"
    )
    assert all(character.isprintable() or character == "\n" for character in said)


def test_a_token_of_the_host_alone_is_enough(service: ServiceThread, unit: HostUnit) -> None:
    code, said = unit.run("down", token=OF_ALPHA)
    assert (code, host(service).guests) == (0, 0), said
    code, said = unit.run("down", host="beta", token=OF_ALPHA)
    assert code == 1
    assert "drain-alpha is limited to alpha" in said
    code, said = unit.run("up", token=OF_ALPHA)
    assert code == 0, said
    service.until(lambda running: not running.queries.active_evacuations(), "its guests are home")
    assert host(service).guests == 3


def test_no_guest_comes_to_an_empty_host_that_goes_down(service: ServiceThread, unit: HostUnit) -> None:
    service.ask(Evacuate(host="alpha"))
    service.until(lambda running: not running.queries.active_evacuations(), "it is empty")
    service.ask(Activate(host="alpha"))
    assert unit.run("down", "--settle=30")[0] == 0
    assert host(service).state == "maintenance"
    assert unit.run("up")[0] == 0
    service.until(lambda running: not running.queries.active_evacuations(), "it takes guests")
    assert host(service).state == "active"

    assert unit.run("down")[0] == 0
    service.ask(Cordon(host="alpha"))
    code, said = unit.run("up")
    assert (code, host(service).state) == (0, "maintenance")
    assert "migrator uncordon alpha" in said


@pytest.mark.parametrize("tokens", [(OPERATOR, OPERATOR), (OF_ALPHA, OF_BETA)], ids=["one token", "one each"])
def test_guests_are_not_moved_where_everything_goes_down(
    service: ServiceThread, unit: HostUnit, tokens: tuple[str, str]
) -> None:
    hosts = zip(("alpha", "beta"), tokens, strict=True)
    # They leave each other 30 looks, which is time enough for one that a busy machine has held up.
    given = ("--settle=30", "--poll=0.1")
    both = [unit.begin("down", *given, host=name, token=token) for name, token in hosts]
    said = ""
    for process in both:
        with process:
            said, _ = process.communicate(timeout=60)
        assert process.returncode == 1, said
    assert "2 of 2 hosts go down at once: nobody is moved" in said
    assert (host(service, "alpha").guests, host(service, "beta").guests) == (3, 2)
    assert not service.do(lambda running: running.queries.active_evacuations())
    assert unit.run("up") == (0, "")


def test_host_that_is_not_empty_in_time_goes_down_all_the_same(
    service: ServiceThread, unit: HostUnit
) -> None:
    service.move_slowly()
    begun = time.monotonic()
    code, said = unit.run("down", "--seconds=6.5")
    assert code == 1
    assert time.monotonic() - begun < 20
    assert "alpha: stopped, 3 of 3 guests still on alpha: " in said
    assert (host(service).state, host(service).guests) == ("draining", 3)


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_service_that_is_away_is_in_nobodys_way(how: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"http://127.0.0.1:{silent.getsockname()[1]}"
        unit = HostUnit(tmp_path / "host", where)
        if how == "refused":
            silent.close()
        begun = time.monotonic()
        code, said = unit.run("down", "--timeout=0.5")
    assert code == 1
    assert said.startswith(f"migrator-drain: alpha: no answer from the service at {where}: ")
    assert said.count("\n") == 1
    assert time.monotonic() - begun < 10


def test_answers_that_are_no_services_are_told_in_one_line_and_no_host_is_called_empty_for_them(
    tmp_path: Path,
) -> None:
    answers = {
        "{}": "its answer lacks 'state'",
        '{"state": "draining", "guests": 2, "up": true, "items": [1]}': "it lists nothing",
        # Of a host that the service does not see, nobody knows the guests.
        '{"state": "maintenance", "guests": 0, "up": false, "items": []}': "its answer lacks 'id'",
        "[" * 100_000: "is no migrator (status 200)",
    }
    with socket.create_server(("127.0.0.1", 0)) as listener:
        unit = HostUnit(tmp_path / "host", f"http://127.0.0.1:{listener.getsockname()[1]}")
        for answer, told in answers.items():
            with _answering(listener, answer):
                code, said = unit.run("down", "--away-seconds=0")
            assert (code, said.count("\n")) == (1, 1), said
            assert told in said


@contextlib.contextmanager
def _answering(listener: socket.socket, answer: str) -> Iterator[None]:
    """Give this answer to whatever is asked."""
    text = f"HTTP/1.0 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n{answer}".encode()
    over = threading.Event()

    def answer_all() -> None:
        listener.settimeout(0.05)
        while not over.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(text)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(65536)  # the rest of what was asked, so that it is no reset

    thread = threading.Thread(target=answer_all)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_service_that_goes_away_meanwhile_is_given_up(service: ServiceThread, unit: HostUnit) -> None:
    service.move_slowly()
    with unit.begin("down", "--away-seconds=0.5") as process:
        service.until(lambda running: running.queries.active_migrations(), "it moves")
        service.stop()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no answer from the service" in said


def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        missing("there is no systemd-analyze here")
    text = (FILES / "migrator-drain.service").read_text()
    own = tmp_path / "migrator-drain.service"
    own.write_text(text.replace("/usr/local/lib/migrator/migrator-drain", str(FILES / "migrator-drain")))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(own)], capture_output=True, text=True, check=False
    )
    about = [line for line in done.stderr.splitlines() if "migrator-drain" in line]
    assert (done.returncode, about) == (0, []), done.stderr
