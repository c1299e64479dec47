"""The process that a guest's TPM is emulated by (swtpm), and the command line of one like it at a target. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from migrator.core.process.command_line import CommandLine
from migrator.core.process.options import Value
from migrator.errors import Refused

#: Options of swtpm that the next one has too, with and without a value.
_KEPT = frozenset({"key", "migration-key", "flags", "seccomp", "locality", "profile"})
_KEPT_FLAGS = frozenset({"tpm2"})
#: ... and those that it gets anew, or that are of the one process alone.
_ANEW, _ANEW_FLAGS = (
    frozenset({"tpmstate", "ctrl", "pid", "log", "migration"}),
    frozenset({"daemon", "terminate"}),
)
_SHORT_NAMES = {"-d": "daemon", "-t": "terminate"}
#: Keys of its control channel that say who may connect.
_ACCESS = ("mode", "uid", "gid")


@dataclass(frozen=True, kw_only=True)
class TpmEmulator:
    """A process that emulates a TPM."""

    #: Socket that QEMU has connected to.
    socket: str
    #: Directory of the TPM's state, and ``mode=`` of the files in it where that is given.
    state_directory: str
    state_mode: str = ""
    #: Who may connect to its socket, as ``key=value``.
    access: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    #: Files with keys that it is given.
    key_files: tuple[str, ...] = ()
    #: Its user, and who has the state directory, ``uid:gid``; and the mode of that.
    user: str = ""
    owner: str = ""
    mode: str = ""

    @property
    def other_user(self) -> bool:
        """True where its user is not root."""
        return not self.user.startswith("0:")

    @classmethod
    def parse(
        cls, argv: Sequence[str], socket: str, *, user: str = "", owner: str = "", mode: str = ""
    ) -> Self:
        """Return the emulator of a command line.

        :raise Refused: another one like it cannot be started; says why.
        """
        state, control, kept, keys = Value("", first=""), Value("", first=""), [], []
        if "socket" not in argv[1:2]:
            raise Refused("it is no swtpm that serves a socket")
        rest = iter(argv[2:])
        for word in rest:
            name, equals, given = word.removeprefix("--").partition("=")
            name = _SHORT_NAMES.get(word, name if word.startswith("--") else "")
            if name in _ANEW_FLAGS:
                continue
            if name in _KEPT_FLAGS:
                kept.append(f"--{name}")
                continue
            if name not in _KEPT and name not in _ANEW:
                raise Refused(f"what its option {word} would be there is not known")
            value = given if equals else next(rest, "")
            if name == "tpmstate":
                state = Value(value, first="")
            elif name == "ctrl":
                control = Value(value, first="")
            elif name in _KEPT:
                kept += [f"--{name}", value]
                parts = Value(value, first="")
                if parts.get("fd") or parts.get("pwdfd"):
                    raise Refused(f"its {name} was handed to it open")
                keys += [path for path in (parts.get("file"), parts.get("pwdfile")) if path]
        if control.get("path") != socket:
            raise Refused(f"it does not serve {socket}")
        directory = state.get("dir")
        if not directory.startswith("/"):
            raise Refused("its state is in no directory that its command line names from the root")
        return cls(
            socket=socket,
            state_directory=directory.rstrip("/"),
            state_mode=state.get("mode"),
            access=tuple(f"{key}={control.get(key)}" for key in _ACCESS if control.get(key)),
            options=tuple(kept),
            key_files=tuple(keys),
            user=user,
            owner=owner,
            mode=mode,
        )

    def command(self, run_directory: str) -> tuple[str, ...]:
        """Return the command line of one like it, which ends with the QEMU that connects to it."""
        state = f"dir={self.state_directory}" + (f",mode={self.state_mode}" if self.state_mode else "")
        control = ",".join(["type=unixio", f"path={socket_at(run_directory)}", *self.access])
        return (
            *("swtpm", "socket", *self.options, "--tpmstate", state, "--ctrl", control),
            *("--pid", f"file={run_directory}/tpm/pid", "--terminate", "--daemon"),
        )


@dataclass(frozen=True, kw_only=True)
class TpmObstacles:
    """Why no emulator like a guest's can be started at a target, for a person; all empty where one can."""

    #: The source's is not seen, or not understood.
    source: str = ""
    #: Something is missing at the target.
    target: str = ""
    #: The target has another state in its place.
    state: str = ""


def socket_at(run_directory: str) -> str:
    """Return the path of the socket of one that is started for a QEMU of that run directory."""
    return f"{run_directory}/tpm/control"


def tpm_socket(command: CommandLine) -> str:
    """Return the path of the socket at which a guest's TPM is emulated; empty where it has none."""
    chardevs = {option["id"]: option for option in command.all("chardev")}
    for option in command.all("tpmdev"):
        behind = chardevs.get(option["chardev"])
        if option["type"] == "emulator" and behind is not None and behind["path"].startswith("/"):
            return behind["path"]
    return ""
