"""A real mosquitto with the project's own configuration: started, stopped, killed and frozen by a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.ports import free_port

CONFIG = Path(__file__).parent.parent / "config"

#: User and password of every role in the ACL file, and a second scheduler without a section of its own.
USERS = {"migrator": "m-secret", "scheduler": "s-secret", "dashboard": "d-secret", "other": "o-secret"}


def mosquitto() -> str | None:
    """The broker's program, or ``None``."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Broker:
    """`config/mosquitto.conf` and `.acl` as they are, but for ports, paths and the user it runs as.

    It has its own directory, where it keeps what is retained and what waits in sessions over :meth:`stop`.
    """

    def __init__(self, directory: Path, *, tls: bool = False) -> None:
        self.directory = directory
        self.port = free_port()
        self.tls_port = free_port() if tls else 0
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "log"
        self._configure()

    def _configure(self) -> None:
        passwords = self.directory / "passwd"
        passwords.write_text("".join(f"{user}:{word}\n" for user, word in USERS.items()))
        subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True, capture_output=True)
        passwords.chmod(0o600)
        text = (CONFIG / "mosquitto.conf").read_text()
        if not self.tls_port:
            text = re.sub(r"(?m)^(listener 8883|cafile|certfile|keyfile).*\n", "", text)
        for key, value in (
            ("password_file", passwords),
            ("acl_file", CONFIG / "mosquitto.acl"),
            ("cafile", self.directory / "ca.pem"),
            ("certfile", self.directory / "broker.pem"),
            ("keyfile", self.directory / "broker.key"),
        ):
            text = re.sub(rf"(?m)^{key} .*$", f"{key} {value}", text)
        text = re.sub(r"(?m)^listener 1883.*$", f"listener {self.port} 127.0.0.1", text)
        text = re.sub(r"(?m)^listener 8883.*$", f"listener {self.tls_port} 127.0.0.1", text)
        # Root gives up its rights otherwise, and with them the directory.
        text += "user root\n" if os.geteuid() == 0 else ""
        (self.directory / "conf.d").mkdir(exist_ok=True)
        (self.directory / "conf.d" / "migrator.conf").write_text(text)
        # As Debian's own, which is read first: what is said there cannot be said again.
        (self.directory / "mosquitto.conf").write_text(
            f"pid_file {self.directory}/pid\npersistence true\npersistence_location {self.directory}/\n"
            f"log_dest stdout\ninclude_dir {self.directory}/conf.d\n"
        )

    def start(self) -> None:
        """Returns once it takes connections."""
        program = mosquitto()
        assert program, "no mosquitto"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-v", "-c", str(self.directory / "mosquitto.conf")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                # An answer, if only that nobody gets in without a name: its loop runs. A SIGTERM before would be lost.
                probe.sendall(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00")
                if probe.recv(1):
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"mosquitto did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)

    async def started(self) -> None:
        """As :meth:`start`, while the loop goes on."""
        await asyncio.to_thread(self.start)

    def stop(self) -> None:
        """As an administrator stops it: it writes down what it holds."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """It writes down nothing."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """A black hole: connections are taken, and nothing is answered."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """The end of :meth:`freeze`."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(20)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
