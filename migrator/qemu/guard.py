"""The guard of QEMUs at their host: nobody's guest stands still at its switch because its controller is away.

A stand-alone program: a host gets this very text on the standard input of its python3 (see :data:`PROGRAM`), and then
requests, a line of JSON each; nothing of the project is imported here, and nothing is used that python 3.7 lacks. One
guards all QEMUs of one host for one controller. An empty line is a sign of life.

It acts only when its controller is gone (the end of its input), cut off (silent for longer than agreed), or has said
that it leaves a QEMU to it; and then only through the monitor that the controller itself drives that QEMU by. A monitor
serves one client at a time, and before QEMU greets the next it drops what the last one said and it has not begun to
carry out. So no command of that controller can follow what is seen there, and a controller that comes back waits in the
monitor's queue until the guard has let go, which it does after each look. What it finds decides:

- another controller's mark, or a migration that is past its switch or over: nothing is done, now and later;
- memory is being copied: the stream is held back, so that it waits for whoever goes on with it; and cancelled where its
  controller has stopped the guest, which then goes on;
- ``pre-switchover``, where the guest stands still, and the mark that its controller removes just before it says
  ``migrate-continue``: ``migrate_cancel``. The guest goes on at once;
- ``pre-switchover`` without that mark: QEMU may have been told to switch, and not show it yet. Nothing is done.

Before the cancel a mark says whose migration is ended, so that whoever finds it ended knows that it may begin again.
How a stream is cancelled so that QEMU comes to the end of that is told in :mod:`migrator.qemu.stream_cancel`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Command line for a python3: the first line is how long the text of this module is, which follows.
PROGRAM = (
    "import sys, os; r = lambda n: os.read(0, n) or sys.exit()\n"
    "n = int(b''.join(iter(lambda: r(1), b'\\n'))); t = b''\n"
    "while len(t) < n: t += r(n - len(t))\n"
    "exec(compile(t, 'guard', 'exec'))"
)
#: The parameters by which a stream waits for its controller: bytes per second, milliseconds.
PARKED = {"max-bandwidth": 4096, "downtime-limit": 1}
#: The mark that names the migration which a guard has ended, the one that names a migration whose source was not told
#: to switch yet, and the one that names who drives a QEMU.
MARK, BEFORE_SWITCH, _DRIVER = "guard", "before-switch", "driver"
#: Seconds that a QEMU which has the guard as its client may take to answer.
_ANSWER_SECONDS = 2.0
#: Seconds that are waited for a monitor that another client has, once the controller is gone: whoever it is takes care.
_WAIT_SECONDS = 5.0
#: Seconds between two looks, and where it is waited for a stream to rest, or for the end of a cancel.
_PAUSE_SECONDS, _NEAR_SECONDS = 0.05, 0.015
#: Seconds that are waited for the end of a cancel before the stream's connections are broken off.
_END_SECONDS = 1.0
#: What is being copied, or about to be.
_COPIES = ("setup", "wait-unplug", "active")
#: The guest stands still at the last point at which a cancel is safe.
_AT_SWITCH = "pre-switchover"
#: A cancel has begun to have its effect, or a stream that was broken off for it has ended.
_CANCELLED = ("cancelling", "cancelled", "failed")
#: A stream rests after so many looks that show nothing new; it is waited for no longer than for so many.
_LOOKS_AT_REST, _MOST_LOOKS = 2, 30
#: No answer came in time; another class than ``TimeoutError`` before python 3.10.
_TimedOut = socket.timeout


class RefusedByQemu(Exception):
    """QEMU has refused a command, and done nothing."""


class GuardMonitor:
    """A session with one QEMU, for one look.

    :param greeting_seconds: how long it may take until QEMU serves this client.
    :raise TimeoutError: it serves this client, and does not answer.
    :raise OSError: nobody listens there, or another client has it for longer than that.
    """

    def __init__(self, path: str, *, greeting_seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._rest = b""
        self._sent, self._began_ns = 0, time.monotonic_ns()
        try:
            self._socket.settimeout(greeting_seconds)
            oob = "oob" in self._greeting(path)["QMP"].get("capabilities", ())
            self._socket.settimeout(_ANSWER_SECONDS)
            self.execute("qmp_capabilities", **({"enable": ["oob"]} if oob else {}))
        except BaseException:
            self._socket.close()
            raise

    def _greeting(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        try:
            self._socket.connect(path)
            while "QMP" not in found:
                found = self._read()
        except _TimedOut as error:
            raise BlockingIOError("another client has it, or the whole of QEMU stands still") from error
        return found

    def execute(self, command: str, **arguments: Any) -> Any:
        """Execute one command.

        :raise RefusedByQemu: QEMU did nothing.
        :raise OSError: it did not answer (``TimeoutError``), or has hung up; it may have done it, or do it yet.
        """
        return self._ask(command, arguments)

    def _ask(self, command: str, arguments: dict[str, Any], how: str = "execute") -> Any:
        self._sent += 1
        name = f"guard-{self._began_ns}-{self._sent}"
        self._socket.sendall(json.dumps({how: command, "arguments": arguments, "id": name}).encode())
        answer: dict[str, Any] = {}
        while answer.get("id") != name:  # an event, or an answer meant for the client before us
            answer = self._read()
        if "error" in answer:
            raise RefusedByQemu(str(answer["error"]))
        return answer["return"]

    def _read(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            chunk = self._socket.recv(65536)
            if not chunk:
                raise ConnectionError("QEMU has hung up")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return dict(json.loads(line))
        except ValueError as error:
            raise ConnectionError(f"this is not QMP: {line[:100]!r}") from error

    def status(self) -> str:
        """Return the migration's status; empty where there was none."""
        return str(self.execute("query-migrate").get("status", ""))

    def sent(self) -> int:
        """Return how much of the guest's memory has gone into the stream, in bytes."""
        return int(self.execute("query-migrate").get("ram", {}).get("transferred", 0))

    def cancel(self) -> None:
        """Cancel the migration, and break its stream off where that is not answered or does not come to its end.

        All over one session: a QEMU whose main loop waits for a connection would take nothing out of band in another.

        :raise RefusedByQemu: QEMU did nothing.
        :raise OSError: it does not answer that either.
        """
        try:
            self.execute("migrate_cancel")
            give_up_at = time.monotonic() + _END_SECONDS
            while time.monotonic() < give_up_at:
                if self.status() != "cancelling":
                    return
                time.sleep(_NEAR_SECONDS)
        except _TimedOut:
            pass
        with contextlib.suppress(RefusedByQemu):  # it has ended just now
            self.yank()

    def yank(self) -> None:
        """Break the migration's connections off, out of band: that is answered even while QEMU's main loop waits."""
        self._ask("yank", {"instances": [{"type": "migration"}]}, "exec-oob")

    def run_state(self) -> str:
        """Return whether the guest runs, or why it does not."""
        return str(self.execute("query-status")["status"])

    def mark(self, name: str) -> str:
        """Return what a mark says; empty where there is none."""
        try:
            return str(self.execute("qom-get", path=f"/objects/migrator-{name}", property="identity"))
        except RefusedByQemu:
            return ""

    def driver(self) -> str:
        """Return the token of whoever drives this QEMU; empty where nobody does."""
        try:
            found = json.loads(self.mark(_DRIVER))
        except ValueError:
            return ""
        return str(found.get("token", "")) if isinstance(found, dict) else ""

    def set_mark(self, name: str, text: str) -> None:
        """Add a mark, in place of one of that name; a QEMU that cannot have marks does without."""
        with contextlib.suppress(RefusedByQemu):
            self.execute("object-del", id=f"migrator-{name}")
        with contextlib.suppress(RefusedByQemu):
            self.execute(
                "object-add", **{"qom-type": "authz-simple", "id": f"migrator-{name}", "identity": text}
            )

    def close(self) -> None:
        """Let QEMU have another client."""
        self._socket.close()


class Guarded:
    """One QEMU that is guarded.

    :param request: ``socket``: its monitor, ``token``: of the driver that its mark names, ``migration``: which it is;
        ``rescue``: another monitor of it, where it has one; ``stopped``: its controller has stopped the guest, which
        has to be told to go on once the migration is cancelled.
    :param monitor: opens a session with a QEMU.
    """

    def __init__(self, request: dict[str, Any], monitor: Callable[..., GuardMonitor] = GuardMonitor) -> None:
        self._monitor = monitor
        self.socket = str(request["socket"])
        self.stopped = bool(request.get("stopped"))
        self.token, self.migration = str(request["token"]), str(request["migration"])
        self.rescue = str(request.get("rescue", ""))
        #: Held while something is done to it.
        self.acting = threading.Lock()
        self.released = False
        self.parked = self.cancelled = False
        #: What had been sent of a stream at the last look; how many looks since one that had shown more, -1: there was
        #: none; and how many looks in all.
        self._sent, self._at_rest, self._looks = 0, -1, 0
        self.watch: threading.Thread | None = None

    def stands(self) -> bool:
        """Tell over the other monitor whether the guest stands still at its switch; True where that cannot be told."""
        if not self.rescue:
            return True
        try:
            with contextlib.closing(self._monitor(self.rescue, greeting_seconds=0.2)) as monitor:
                return monitor.status() == _AT_SWITCH
        except (OSError, RefusedByQemu):
            return True

    def act(self) -> bool:
        """Look once, and do what it takes; True where it has to be looked at again.

        :raise OSError: it cannot be asked.
        """
        with self.acting:
            if self.released:
                return False
            with contextlib.closing(self._monitor(self.socket, greeting_seconds=_WAIT_SECONDS)) as monitor:
                if self.token and monitor.driver() != self.token:
                    return False
                status = monitor.status()
                untold = status == _AT_SWITCH and monitor.mark(BEFORE_SWITCH) == self.migration
                if status in _COPIES and not self.parked:
                    self.parked = self.stopped  # a guest that stands still does not wait until that is done
                    monitor.execute("migrate-set-parameters", **PARKED)
                    self.parked, self._sent = True, monitor.sent()
                elif untold or (status in _COPIES and self.stopped and self._rests(monitor)):
                    monitor.set_mark(MARK, json.dumps({"migration": self.migration, "at": time.time()}))
                    self.cancelled = True  # though that may not be answered
                    monitor.cancel()
                elif self.cancelled and self.stopped and status in _CANCELLED:
                    self.stopped = not self._goes_on(monitor, status)
                    return self.stopped or status == "cancelling"
                return status in (*_COPIES, _AT_SWITCH, "cancelling")

    def _rests(self, monitor: GuardMonitor) -> bool:
        """Tell whether the stream has just sent what it may at once, and rests; or that was waited for long enough."""
        before, self._sent = self._sent, monitor.sent()
        if self._sent != before:
            self._at_rest = 0
        elif self._at_rest >= 0:
            self._at_rest += 1
        self._looks += 1
        return self._at_rest >= _LOOKS_AT_REST or self._looks >= _MOST_LOOKS

    def _goes_on(self, monitor: GuardMonitor, status: str) -> bool:
        """Let a guest go on whose migration this guard cancelled; False where it cannot yet.

        The end of the cancel is not waited for: from its beginning on QEMU hands nothing over any more.
        """
        run = monitor.run_state()
        # QEMU 7.2 leaves a guest that had been stopped in the latter, where it was cancelled at its switch.
        if run == "paused" or (run == "postmigrate" and status != "cancelling"):
            monitor.execute("cont")
            return True
        return run != "finish-migrate"

    @property
    def _pause_seconds(self) -> float:
        waits = self.parked and self.stopped and not self.cancelled
        return _NEAR_SECONDS if waits else _PAUSE_SECONDS

    def look_after(self) -> None:
        """Watch it until it needs nobody any more, another client has it, or it is released."""
        while True:
            try:
                if not self.act():
                    return
            except (RefusedByQemu, _TimedOut):
                pass  # it has moved on between two commands, or waits for its stream: the next look tells
            except OSError:
                return  # it has ended, or another client has it: whoever that is takes care of it
            time.sleep(self._pause_seconds)


class GuardProgram:
    """All QEMUs that one controller has guarded at this host."""

    def __init__(self) -> None:
        self._guarded: dict[str, Guarded] = {}
        #: Seconds of silence after which the controller is cut off; ``None``: only the end of the input tells.
        self._silence: float | None = None
        self._heard = time.monotonic()

    def hear(self, line: bytes) -> None:
        """Take one line of the controller's."""
        self._heard = time.monotonic()
        if not line.strip():
            return
        request = json.loads(line)
        name = str(request.get("name", ""))
        do = request["do"]
        if do == "guard":
            self._release(name)
            self._guarded[name] = Guarded(request)
        elif do == "release":
            self._release(name)
        elif do == "leave":
            if name in self._guarded:
                self._look_after(self._guarded[name])
        elif do == "silence":
            self._silence = request["seconds"]
        self._say({"done": do, "name": name})

    def _release(self, name: str) -> None:
        guest = self._guarded.pop(name, None)
        if guest is not None:
            with guest.acting:  # what has begun is over when this is answered
                guest.released = True

    def _say(self, what: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            os.write(1, json.dumps(what).encode() + b"\n")

    def _look_after(self, guest: Guarded) -> None:
        if guest.watch is None or not guest.watch.is_alive():
            guest.watch = threading.Thread(target=guest.look_after)
            guest.watch.start()

    @property
    def _cut_off(self) -> bool:
        silent = time.monotonic() - self._heard
        return self._silence is not None and silent > self._silence and bool(self._guarded)

    @property
    def _wait_seconds(self) -> float | None:
        """Return until when nothing is to be done but to hear; ``None``: there is no such time."""
        if self._silence is None or not self._guarded:
            return None
        return max(_PAUSE_SECONDS, self._heard + self._silence - time.monotonic() + 0.001)

    def serve(self) -> None:
        """Guard until the controller is gone, or cut off, and then for as long as a guest needs it."""
        rest = b""
        while not (self._cut_off and self._needed()):
            if not select.select([0], [], [], self._wait_seconds)[0]:
                continue
            chunk = os.read(0, 65536)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self.hear(line)
        else:
            _end_ssh_session()
        for guest in self._guarded.values():
            self._look_after(guest)

    def _needed(self) -> bool:
        return any(guest.stands() for guest in self._guarded.values())


def _end_ssh_session() -> None:
    """End the server's process of the connection that this came over, and with it what the controller holds here.

    A connection that is cut keeps every monitor that came through it. What is under way on it is lost as by any cut.
    """
    parent = os.getppid()
    with contextlib.suppress(OSError):
        if Path(f"/proc/{parent}/comm").read_text(encoding="utf-8", errors="replace").startswith("sshd"):
            os.kill(parent, signal.SIGKILL)


def main() -> None:
    """Guard what the input says."""
    for each in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):  # the controller's, or a sign of its end
        signal.signal(each, signal.SIG_IGN)
    GuardProgram().serve()


if __name__ == "__main__":
    main()
