"""Commands that stay: waits, screens, a service that restarts under them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migrator.api.commands import Migrate
from tests.command import MIGRATOR
from tests.service_thread import ServiceThread, in_thread

_LIMIT_SECONDS = 20.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceThread]:
    with in_thread(tmp_path) as service:
        service.move_slowly("web", "db")
        yield service


class Running:
    """A command that runs, and what it has said."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self.process = process
        self._output = output
        self._said = b""
        self._reader = threading.Thread(target=self._read, name="output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._output, 65536)
            except OSError:  # a terminal whose last user has gone
                return
            if not piece:
                return
            self._said += piece

    @property
    def said(self) -> str:
        return self._said.decode(errors="replace")

    def until(self, wanted: str | Callable[[str], bool]) -> str:
        deadline = time.monotonic() + _LIMIT_SECONDS
        while not (wanted in self.said if isinstance(wanted, str) else wanted(self.said)):
            assert time.monotonic() < deadline, f"waited in vain for {wanted!r}: {self.said!r}"
            select.select([], [], [], 0.005)
        return self.said

    def type(self, keys: str) -> None:
        """Press keys on its terminal."""
        os.write(self._output, keys.encode())

    def ended(self) -> int:
        code = self.process.wait(_LIMIT_SECONDS)
        self._reader.join(5)
        return code


@contextlib.contextmanager
def running(
    service: ServiceThread, *arguments: str, terminal: tuple[int, int] | None = None
) -> Iterator[Running]:
    """A command by a pipe, or on a terminal of so many columns and lines."""
    if terminal is None:
        ours, theirs = os.pipe()
    else:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", terminal[1], terminal[0], 0, 0))
    process = subprocess.Popen(
        [*MIGRATOR, *arguments],
        stdin=subprocess.DEVNULL if terminal is None else theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={
            **os.environ,
            "MIGRATOR_SERVER": f"unix:{service.place.socket}",
            "TERM": "xterm-256color",
            "COLUMNS": "",
            "LINES": "",
        },
    )
    os.close(theirs)
    command = Running(process, ours)
    try:
        yield command
    finally:
        process.kill()
        process.wait()
        command._reader.join(5)
        os.close(ours)


def begin(service: ServiceThread) -> str:
    """Begin to move a guest; the migration's id."""
    identifier: str = service.ask(Migrate(guest="db", to="beta")).id
    return identifier


def test_ctrl_c_detaches_and_cancels_nothing(service: ServiceThread):
    with running(service, "migrate", "db", "--wait") as command:
        command.until("preparing")
        command.until("precopy")
        command.process.send_signal(signal.SIGINT)
        assert command.ended() == 130
        [one] = service.active()
        assert f"detached; migration {one.id} goes on. migrator watch {one.id} shows it again" in command.said
        assert "Traceback" not in command.said


@pytest.mark.parametrize("terminal", [None, (100, 30)], ids=["piped", "terminal"])
def test_a_wait_goes_on_when_the_service_restarts(service: ServiceThread, terminal: tuple[int, int] | None):
    with running(service, "migrate", "db", "--wait", terminal=terminal) as command:
        command.until("precopy")
        [one] = service.active()
        service.stop()
        command.until("trying again")
        service.start()
        command.until("the service is back")
        service.let_move()
        assert command.ended() == 0, command.said
        decisions = service.migration(one.id).decisions
        assert {each.action for each in decisions} >= {"take-up", "hand-over"}
        made = Counter(f"{each.action}: {each.reason}" for each in decisions)
        assert {text: command.said.count(text) for text in made} == made
        assert "completed" in command.said


def test_what_happened_while_the_service_was_away_is_shown(service: ServiceThread):
    with running(service, "migrate", "db", "--wait") as command:
        command.until("precopy")
        service.stop()
        command.until("trying again")
        service.let_move()
        service.start()
        assert command.ended() == 0, command.said
        assert "hand-over: " in command.said


def test_an_evacuation_watched_over_a_restart(service: ServiceThread):
    # Of three one is away at once.
    with running(service, "evacuate", "alpha", "--wait") as command:
        command.until("3 of 3 guests still there")
        command.until("2 of 3 guests still there")
        service.stop()
        command.until("trying again")
        service.start()
        command.until("the service is back")
        service.let_move()
        assert command.ended() == 0, command.said
        assert "evacuation of alpha, completed" in command.said


def test_ctrl_c_leaves_an_evacuation_running(service: ServiceThread):
    with running(service, "evacuate", "alpha", "--wait", terminal=(90, 30)) as command:
        command.until(lambda said: "running" in said)
        command.process.send_signal(signal.SIGINT)
        assert command.ended() == 130
        [one] = service.do(lambda world: world.queries.active_evacuations())
        assert f"evacuation {one.id} goes on" in command.said


@pytest.mark.parametrize("columns", [60, pytest.param(160, marks=pytest.mark.matrix)])
def test_tables_fit_the_terminal(service: ServiceThread, columns: int):
    for arguments in (("hosts",), ("guests",), ("plan", "alpha"), ("status",)):
        with running(service, *arguments, terminal=(columns, 24)) as command:
            assert command.ended() == 0, command.said
            lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in command.said.splitlines()]
            table = [
                line for line in lines if not line.startswith("alpha would be empty")
            ]  # a sentence wraps
            assert max(map(len, table)) <= columns, arguments
            assert "\x1b[31m'" not in command.said


def test_the_time_left_is_seen_on_a_usual_terminal(service: ServiceThread):
    with running(service, "migrate", "db", "--wait", terminal=(80, 24)) as command:
        command.until(lambda said: re.search(r"\d (s|min) to go", said) is not None)
        service.let_move()
        assert command.ended() == 0


def test_bars_stay_on_their_line(service: ServiceThread):
    with running(service, "migrate", "db", "--wait", terminal=(80, 24)) as command:
        command.until(lambda said: "precopy" in said and "to go" in said)
        service.let_move()
        assert command.ended() == 0
        shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", command.said)
        assert max(len(line) for piece in shown.split("\n") for line in piece.split("\r")) <= 160
        assert shown.count("completed") >= 1


class TestScreen:
    def test_on_a_terminal(self, service: ServiceThread):
        with running(service, "watch", terminal=(120, 40)) as command:
            command.until("no guest is moving")
            begin(service)
            command.until(lambda said: "precopy" in said and re.search(r"\b[1-9]%", said) is not None)
            service.stop()
            command.until("does not answer")
            service.start()
            service.let_move()
            command.until("completed")
            command.process.send_signal(signal.SIGINT)
            assert command.ended() == 0
            assert "Traceback" not in command.said

    def test_piped_it_is_lines_of_events(self, service: ServiceThread):
        with running(service, "watch") as command:
            service_listens(service)
            one = begin(service)
            service.let_move()
            said = command.until("hand-over: ")
            assert f"migration {one}  preparing" in said
            assert "\x1b" not in said
            command.process.send_signal(signal.SIGINT)
            assert command.ended() == 0

    def test_events_are_followed(self, service: ServiceThread):
        with running(service, "events", "--follow", "--json") as command:
            service_listens(service)
            begin(service)
            command.until('"kind": "state"')
            command.process.send_signal(signal.SIGINT)
            assert command.ended() == 130


class TestTop:
    def test_one_is_chosen_looked_into_and_cancelled(self, service: ServiceThread):
        with running(service, "top", terminal=(120, 40)) as command:
            command.until("nothing is under way")
            one = begin(service)
            command.until("precopy")
            command.type("\r")
            command.until("policy default")
            command.type("\x1b")
            command.type("c")
            command.until("cancel it? y does it, any other key does not")
            command.type("n")
            command.until("nothing was done")
            assert [each.id for each in service.active()] == [one]
            command.type("cy")
            command.until("is being cancelled")
            command.until("cancelled")
            command.type("q")
            assert command.ended() == 0
            assert "Traceback" not in command.said
            assert command.said.rstrip().endswith("\x1b[?1049l\x1b[?25h") or "\x1b[?1049l" in command.said

    def test_the_chosen_one_stays_in_sight_on_a_small_terminal(self, service: ServiceThread):
        with running(service, "top", terminal=(60, 8)) as command:
            begin(service)
            command.until("precopy")
            command.type("jkjp")
            command.until(lambda said: "postcopy" in said)
            command.type("xq")
            assert command.ended() == 0
            drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-GI-Z]", "", command.said)
            assert max(map(len, re.split(r"[\r\n]|\x1b\[[0-9;]*H", drawn))) <= 60

    def test_without_a_terminal_it_says_what_to_use(self, service: ServiceThread):
        with running(service, "top") as command:
            assert command.ended() == 2
            assert "top takes a terminal; migrator watch prints lines" in command.said


def service_listens(service: ServiceThread) -> None:
    """Somebody follows its events."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while service.do(lambda world: world.bus.listening()) == 0:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.005)
