"""``python -m bench.idle``: what a service costs that knows a thousand guests and has nothing to do.

Each guest is a process with a QMP socket that answers what a look at a host asks. Aims: less than 2 % of a core, less
than 150 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from bench.figures import paragraphs, table
from bench.machine import Quiet, describe
from bench.options import Options

_AIM_CORE, _AIM_MIB = 0.02, 150
_GUESTS, _SECONDS = 1000, 180.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PATIENCE_SECONDS = 120.0


def main(arguments: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--guests", type=int, default=_GUESTS)
    parser.add_argument(
        "--seconds", type=float, default=_SECONDS, help="watch for so long: one refresh of the inventory"
    )
    given = parser.parse_args(arguments)
    print(_measure(given.guests, given.seconds))
    return 0


async def run(_: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text."""
    await quiet.wait()
    text = _measure(_GUESTS, _SECONDS)
    return paragraphs(
        f"{describe()} · 1 run · {quiet}",
        "`migrator serve` with HTTP, metrics and its journal. A guest is a process with a QMP socket that answers "
        "what a look at a host asks.",
        text,
    )


def _measure(count: int, seconds: float) -> str:
    directory = Path(tempfile.mkdtemp(prefix="migrator-idle-", dir="/tmp"))
    guests: list[int] = []
    service: subprocess.Popen[bytes] | None = None
    try:
        guests += (_guest(directory, number) for number in range(count))
        config = directory / "migrator.toml"
        config.write_text(
            f'[http]\nsocket = "api.sock"\nmetrics_listen = "127.0.0.1:0"\n[store]\npath = "state/journal.db"\n'
            f'[limits]\nrefresh_interval = "{seconds:g}s"\n'
            f'[[hosts]]\nname = "here"\nsockets = ["{directory}/*.qmp"]\nrun_dir = "{directory}/run"\n',
            encoding="utf-8",
        )
        with (directory / "log").open("wb") as log:
            service = subprocess.Popen(
                [sys.executable, "-m", "migrator", "serve", "--config", str(config)], stdout=log, stderr=log
            )
        _until_known(directory, service, count)
        time.sleep(5.0)
        before, began = _cpu_seconds(service.pid), time.monotonic()
        time.sleep(seconds)
        used = (_cpu_seconds(service.pid) - before) / (time.monotonic() - began)
        status = Path(f"/proc/{service.pid}/status").read_text(encoding="utf-8")
        resident = int((re.search(r"VmRSS:\s+(\d+)", status) or ["", "0"])[1]) / 1024
    finally:
        if service is not None:
            service.terminate()
            service.wait(30)
        for pid in guests:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        shutil.rmtree(directory, ignore_errors=True)
    found = [
        ("share of a core", f"{used:.1%}", f"< {_AIM_CORE:.0%}", used < _AIM_CORE),
        ("resident memory", f"{resident:.0f} MiB", f"< {_AIM_MIB} MiB", resident < _AIM_MIB),
    ]
    rows = [
        [f"{count}", f"{seconds:g} s", what, value, aim, "aim met" if met else "**aim not met**"]
        for what, value, aim, met in found
    ]
    return table(["guests known", "refreshed every", "what", "found", "aim", "verdict"], rows)


def _guest(directory: Path, number: int) -> int:
    """A process that answers as QEMU does what a look asks; its pid."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / f"{number:05}.qmp"))
    listener.listen(1)
    pid = os.fork()
    if pid:
        listener.close()
        return pid
    answers = {
        "query-name": {"name": f"guest {number}"},
        "query-uuid": {"UUID": str(uuid.uuid4())},
        "query-status": {"status": "running", "running": True},
        "query-memory-size-summary": {"base-memory": 1 << 30},
        "query-cpus-fast": [{}, {}],
    }
    try:
        for ending in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ending, signal.SIG_DFL)
        while True:
            session, _ = listener.accept()
            with session:
                session.sendall(
                    b'{"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}}, "capabilities": []}}\n'
                )
                _converse(session, answers)
    finally:
        os._exit(1)  # what its parent began is not its to end


def _converse(session: socket.socket, answers: dict[str, object]) -> None:
    decoder, text = json.JSONDecoder(), ""
    while data := session.recv(65536):
        text = (text + data.decode()).lstrip()
        while text:
            try:
                asked, end = decoder.raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            answer = {"return": answers.get(asked["execute"], {}), "id": asked.get("id")}
            session.sendall(json.dumps(answer).encode() + b"\n")


def _until_known(directory: Path, service: subprocess.Popen[bytes], count: int) -> None:
    until, known = time.monotonic() + _PATIENCE_SECONDS, 0
    while time.monotonic() < until:
        if service.poll() is not None:
            raise SystemExit((directory / "log").read_text(encoding="utf-8"))
        done = subprocess.run(
            [sys.executable, "-m", "migrator", "guests", "--json", "--server", f"unix:{directory}/api.sock"],
            capture_output=True,
            check=False,
        )
        known = len(json.loads(done.stdout)["items"]) if done.returncode == 0 and done.stdout else 0
        if known >= count:
            return
        time.sleep(0.5)
    raise SystemExit(
        f"only {known} of {count} guests were found: {(directory / 'log').read_text(encoding='utf-8')[-2000:]}"
    )


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
