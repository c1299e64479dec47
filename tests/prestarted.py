"""Commands and services that start at once: forked from a process that has loaded everything they need.

To start Python and load a service takes a second of computing, and hundreds of tests start one. Here a process of each
test process loads all of it once, and from then on ``subprocess`` and asyncio have ``migrator …``, however it is typed,
forked from that one: with a pid, arguments, environment, directory and descriptors of its own, and a child of whoever
started it. So has a service its second process. All else is started as ever: other people's programs, ours behind a
prefix, an option of Python or a shell, and ours by a test that has gone into another namespace. ``tests/conftest.py``
installs it; not with ``MIGRATOR_TESTS_START=plain``.

What a start loads, and that it works from nothing, is shown by tests that do not come here: ``test_direct_start.py``,
``test_operations_install.py``, and whoever starts ours in a network namespace.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import inspect
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_COMMAND = str(Path(sys.executable).with_name("migrator"))
_ENTRANCE = "migrator.service.entrance"
_LOADED = (
    *("migrator.cli.app", "migrator.cli.direct", "migrator.cli.rescue", "migrator.cli.remote"),
    "migrator.cli.remote_queries",
    *("migrator.cli.service_commands", "migrator.cli.guest_commands", "migrator.cli.host_commands"),
    *("migrator.cli.operator_commands", "migrator.cli.watch"),
    *("migrator.service.serve", _ENTRANCE),
    "httpcore2",  # which httpx2 loads with its first client
)
_PR_SET_PDEATHSIG, _PR_SET_MM, _PR_SET_MM_ARG_END, _PR_SET_CHILD_SUBREAPER = 1, 35, 9, 36
#: Room for the arguments of a child where the system shows those of a process.
_ROOM_BYTES = 8192
#: Descriptors below it are the child's own; a message with descriptors has at most so many.
_OURS_FROM, _MOST_DESCRIPTORS = 512, 64
_MESSAGE_BYTES = 1 << 17


def install() -> None:
    """Have this process start commands so."""
    if os.environ.get("MIGRATOR_TESTS_START") != "plain":
        subprocess.Popen = Popen  # type: ignore[misc]


def prepare() -> None:
    """Begin to load, in a process that ends with this one; else that begins with the first command."""
    if _Source.here is None and subprocess.Popen is Popen:
        _Source.here = _Source.begun()


_Plain = subprocess.Popen


class Popen(_Plain[Any]):
    """``subprocess.Popen`` for programs of this project, as they are typed; for others it is what it was.

    ``setpriv --pdeathsig KILL`` before one is understood.
    """

    def _execute_child(self, *arguments: Any) -> None:
        own = _Plain._execute_child  # type: ignore[attr-defined]
        given = inspect.signature(own).bind(self, *arguments).arguments
        words = [os.fspath(word) for word in given["args"]] if isinstance(given["args"], Sequence) else []
        mortal = words[:3] == ["setpriv", "--pdeathsig", "KILL"]
        words = words[3:] if mortal else words
        if given["shell"] or given["preexec_fn"] or not _is_ours(words):
            own(self, *arguments)
            return
        prepare()
        if _Source.here is None or not _Source.here.ready() or _Source.here.surroundings != _surroundings():
            own(self, *arguments)
            return
        ends = [(given["p2cread"], 0), (given["c2pwrite"], 1), (given["errwrite"], 2)]
        ends = [(target if end == -1 else end, target) for end, target in ends]
        ends += [(descriptor, descriptor) for descriptor in given["pass_fds"]]
        environment = os.environ if given["env"] is None else given["env"]
        request = {
            "words": words,
            "environment": dict(environment),
            "directory": os.fspath(given["cwd"] or Path.cwd()),
            "targets": [target for _, target in ends],
            "session": bool(given["start_new_session"]),
            "mortal": mortal,
            "parent": os.getpid(),
        }
        try:
            self.pid = _Source.here.ask(request, [end for end, _ in ends])
        finally:
            pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(given[name] for name in pipes))  # type: ignore[attr-defined]
        self._child_created = True


def _is_ours(words: Sequence[str]) -> bool:
    if words[:1] == [_COMMAND]:
        return True
    if words[:1] != [sys.executable]:
        return False
    return words[1:3] in (["-m", "migrator"], ["-m", _ENTRANCE]) or words[1:2] == [
        str(_ROOT / "tests" / "doomed.py")
    ]


def _surroundings() -> tuple[object, ...]:
    """Return what a child has of whoever starts it, beside what it is given: it must be that of who forks it."""
    names = Path("/proc/thread-self/ns")
    status = Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace")
    limits = [
        resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")
    ]
    mask = next(line for line in status.splitlines() if line.startswith("Umask:"))
    return (
        *(str((names / name).readlink()) for name in ("net", "mnt", "pid_for_children")),
        mask,
        os.geteuid(),
        *limits,
    )


class _Source:
    """The end of whoever asks: a process that forks children for it."""

    here: _Source | None = None

    def __init__(self, channel: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._channel = channel
        self._ready = process is None
        self._process = process
        self._lock = threading.Lock()
        self.surroundings = _surroundings()
        self._asks = os.getpid()

    @classmethod
    def begun(cls) -> _Source:
        """Start Python once."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            code = f"import sys; sys.path[0] = {str(_ROOT)!r}; from tests import prestarted as p; "
            code += f"p.source({theirs.fileno()})"
            process = _Plain(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", code, "x" * _ROOM_BYTES],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        made = cls(ours, process)
        atexit.register(made._end)
        return made

    def _end(self) -> None:
        self._channel.close()
        if self._process is not None and os.getpid() == self._asks:
            self._process.kill()
            self._process.wait()

    def ready(self) -> bool:
        """Whether all is loaded: it is not waited for."""
        with self._lock, contextlib.suppress(BlockingIOError):
            self._ready = self._ready or bool(self._channel.recv(64, socket.MSG_DONTWAIT))
        return self._ready

    def ask(self, request: dict[str, Any], descriptors: Sequence[int]) -> int:
        """Return the pid of a new child of this process.

        :raise OSError: it could not be forked.
        """
        with self._lock, _adopting():
            socket.send_fds(self._channel, [json.dumps(request).encode()], descriptors)
            answer = self._channel.recv(64)
        if not int(answer or 0):
            raise OSError("the process that commands of tests are forked from has failed")
        return int(answer)


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Children of ours whose own parent ends become this process's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _prctl(option: int, *values: int) -> None:
    given = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0)[:4]]
    if ctypes.CDLL(None, use_errno=True).prctl(option, *given):
        raise OSError(ctypes.get_errno(), "prctl")


def source(channel: int) -> None:
    """Be the process that forks; what returns from here is a child, at its end."""
    for name in _LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    there = socket.socket(fileno=channel)
    there.send(b"loaded")
    _fork_for(there)


def _fork_for(channel: socket.socket) -> None:
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, _MOST_DESCRIPTORS)
        except ConnectionResetError:  # it ended before it read what it was last told
            os._exit(0)
        if not message:
            os._exit(0)
        told, tell = os.pipe()
        between = os.fork()
        if not between:
            middle = os.getpid()
            if os.fork():  # its parent from now on is whoever asked: nobody between them adopts
                os._exit(0)
            channel.detach()
            request = json.loads(message)
            _adopted(middle, request["parent"])
            _be(request, descriptors, tell)
            return
        os.close(tell)
        os.waitpid(between, 0)
        channel.send(os.read(told, 64) or b"0")
        os.close(told)
        for descriptor in descriptors:
            os.close(descriptor)


def _adopted(middle: int, parent: int) -> None:
    """Wait to be the child of whoever asked; end where that one has ended meanwhile."""
    while (own := os.getppid()) == middle:
        os.sched_yield()
    if own != parent:
        os._exit(0)


def _be(request: dict[str, Any], descriptors: Sequence[int], tell: int) -> None:
    """Become what was asked for, say so, and run it."""
    if request["mortal"]:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if request["session"]:
        os.setsid()
    tell = fcntl.fcntl(tell, fcntl.F_DUPFD, _OURS_FROM)
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _OURS_FROM) for descriptor in descriptors]
    os.closerange(0, _OURS_FROM)
    for descriptor, target in zip(kept, request["targets"], strict=True):
        os.dup2(descriptor, target)
    os.closerange(tell + 1, max(kept) + 1)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    words = request["words"]
    _show(words)
    _open_streams()
    os.write(tell, str(os.getpid()).encode())
    os.close(tell)
    if "serve" in words[1:]:
        _fork_own_source()
    try:
        _run(words)
    except KeyboardInterrupt:
        raise
    except SystemExit as end:
        status = _status(end)
    except BaseException:  # noqa: BLE001 - as Python does it
        traceback.print_exc()
        status = 1
    else:
        status = 0
    _end(status)


def _run(words: Sequence[str]) -> None:
    if words[0] == _COMMAND:
        sys.argv = list(words)
        importlib.import_module("migrator.cli").main()
    elif words[1] == "-m":
        sys.argv = [str(sys.modules[words[2]].__file__), *words[3:]]
        if words[2] == _ENTRANCE:
            importlib.import_module(_ENTRANCE).main(sys.argv[1:])
        else:
            importlib.import_module("migrator.cli").main()
    else:
        sys.argv = list(words[1:])
        runpy.run_path(words[1], run_name="__main__")


def _status(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return (end.code or 0) & 0xFF
    print(end.code, file=sys.stderr)  # noqa: T201 - as Python does it
    return 1


def _end(status: int) -> None:
    """End as Python does, but leave the objects to the system: they are shared, and to take them apart copies them."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream, failed in ((sys.stdout, 120), (sys.stderr, status)):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = failed
    os._exit(status)


def _show(words: Sequence[str]) -> None:
    """Have the system show these arguments, which people and programs find processes by."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    shown = b"".join(os.fsencode(word) + b"\0" for word in words)[: end - begin - 1]
    ctypes.memset(begin, 0, end - begin)
    ctypes.memmove(begin, shown, len(shown))
    with contextlib.suppress(OSError):  # without the right to it the rest is shown as empty arguments
        _prctl(_PR_SET_MM, _PR_SET_MM_ARG_END, begin + len(shown))


def _open_streams() -> None:
    at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    out = open(1, "w", closefd=False)  # noqa: SIM115
    out.reconfigure(line_buffering=out.isatty(), write_through=at_once)
    err = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    err.reconfigure(line_buffering=True, write_through=at_once)
    sys.stdout = sys.__stdout__ = out  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = err  # type: ignore[misc]


def _fork_own_source() -> None:
    """Have what a service starts of ours forked too: from a process like this one, before it has done anything."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    service = os.getpid()
    if os.fork():
        theirs.close()
        _Source.here = _Source(ours)
        subprocess.Popen = Popen  # type: ignore[misc]
        return
    ours.close()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != service:
        os._exit(0)
    with open(os.devnull, "r+b") as nothing:  # noqa: PTH123 - a descriptor
        for number in range(3):
            os.dup2(nothing.fileno(), number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _show(["prestarted"])
    _Source.here = None
    _fork_for(theirs)
    # A child of the one that was forked here comes to this place at its end.
    sys.exit()
