"""Network and character backends of a guest: read from one QEMU, written as QMP commands for another. Pure.

QEMU does not keep the words a backend was made with, so they are put together from what it shows. What it does not
show is either of no consequence for the guest, or refused in plain words.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass, replace
from typing import Any

from migrator.core.process.options import Value, escape
from migrator.errors import Refused

#: A QMP command with its arguments.
Command = tuple[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Netdev:
    """One network backend, as ``info network`` shows it."""

    kind: str
    detail: str
    queues: int = 1
    #: A card hangs on it.
    attached: bool = False
    #: The one of the same name on which none hangs: then this one was removed, and is only shown by its card.
    successor: Netdev | None = None


def netdevs(text: str) -> dict[str, Netdev]:
    """Read the answer of ``info network``; cards are left out."""
    found: dict[str, Netdev] = {}
    for match in re.finditer(
        r"^ *(\\ )?([#\w.-]+): index=(\d+),type=([\w-]+),?(.*?)\r?$", text, re.MULTILINE
    ):
        attached, name, kind = bool(match[1]), match[2], match[4]
        if kind in ("nic", "hubport"):
            continue
        new, old = Netdev(kind=kind, detail=match[5], attached=attached), found.get(name)
        if old is None:
            found[name] = new
        elif old.attached == attached:
            found[name] = replace(old, queues=old.queues + 1)
        else:
            dead, alive = (old, new) if old.attached else (new, old)
            found[name] = replace(dead, successor=alive)
    return found


def netdev_add(name: str, netdev: Netdev, *, vhost: bool) -> Command:
    """Return the command that makes the network backend again.

    :param vhost: it was seen to be driven by vhost-net.
    :raise Refused: when QEMU does not show enough of it.
    """
    arguments: dict[str, Any] = {"id": name}
    if netdev.kind == "user":
        shown = re.fullmatch(r"net=([\d.]+),restrict=(on|off)", netdev.detail)
        if shown:
            arguments |= {"type": "user", "net": f"{shown[1]}/24", "restrict": shown[2] == "on"}
            return "netdev_add", arguments
    elif netdev.kind == "tap":
        shown = re.fullmatch(r"ifname=(.*),script=(.*),downscript=(.*)", netdev.detail)
        if shown:
            arguments |= {"type": "tap", "ifname": shown[1]}
            arguments |= {"script": shown[2] or "no", "downscript": shown[3] or "no"}
            arguments |= {"vhost": True} if vhost else {}
            arguments |= {"queues": netdev.queues} if netdev.queues > 1 else {}
            return "netdev_add", arguments
        shown = re.fullmatch(r"helper=(.*?)(?:,br=(.*))?", netdev.detail)
        if shown:
            bridge = {"type": "bridge", "br": shown[2]} if shown[2] else {"type": "tap"}
            return "netdev_add", arguments | bridge | {"helper": shown[1]}
    raise Refused(
        f"network backend {name} ({netdev.kind}: {netdev.detail}) was added while the guest ran, and QEMU does not "
        "show enough of it to make it again: start the destination with it by a template, or unplug its card"
    )


def netdev_words(written: Value, shown: Netdev | None) -> str:
    """Return the option's value for a network backend as it is now; empty where `written` still describes it.

    :raise Refused: when QEMU does not show enough of it.
    """
    if shown is None:
        return ""
    kind = written.get("type")
    same = shown.kind == ("tap" if kind == "bridge" else kind)
    ifname = re.search(r"ifname=([^,]*)", shown.detail)
    if same and kind == "tap" and written.get("ifname") and ifname:
        same = written.get("ifname") == ifname[1]
    user = re.fullmatch(r"net=([\d.]+),restrict=(on|off)", shown.detail)
    if same and user:
        same = written.is_on("restrict") == (user[2] == "on") and _network(written) in ("", user[1])
    if same and kind == "tap" and "helper=" in shown.detail:
        same = bool(written.get("helper") or written.get("br"))
    return "" if same else json.dumps(netdev_add(written.get("id"), shown, vhost=False)[1])


def _network(written: Value) -> str:
    """Address of a network of QEMU's own; empty where it cannot be told from what is written."""
    text = written.get("net") or "10.0.2.0/24"
    try:
        return str(ipaddress.ip_network(text, strict=False).network_address) if "/" in text else ""
    except ValueError:
        return ""


#: Of each kind of character device, the words with which query-chardev may begin its file name; of those that are not
#: here, nothing is ever taken for a change.
_SHOWN_AS = {
    "file": ("file",),
    "null": ("null",),
    "pty": ("pty",),
    "ringbuf": ("ringbuf",),
    "memory": ("ringbuf",),
    "socket": ("unix:", "tcp:", "telnet:", "websocket:", "tn3270:", "disconnected:"),
    "stdio": ("stdio",),
    "udp": ("udp",),
}
_KNOWN = tuple(word for words in _SHOWN_AS.values() for word in words)
_UNIX = re.compile(
    r"(?:disconnected:)?unix:(?P<path>.*?)(?:,abstract=on)?(?:,tight=\w+)?(?P<server>,server(?:=on)?)?(?: <-> .*)?",
    re.DOTALL,
)
_INET = re.compile(
    r"(?:disconnected:)?tcp:(?P<host>.*):(?P<port>\d+)(?P<server>,server(?:=on)?)?(?: <-> .*)?"
)


def chardev_words(written: Value, shown: str | None) -> str:
    """Return the option's value for a character device as it is now; empty where `written` still describes it.

    :param shown: its ``filename`` in query-chardev.
    :raise Refused: when QEMU does not show enough of it.
    """
    backend = written.get("backend")
    if shown is None or backend not in _SHOWN_AS or written.is_on("mux") or not shown.startswith(_KNOWN):
        return ""
    unix, inet = _UNIX.fullmatch(shown), _INET.fullmatch(shown)
    same = shown.startswith(_SHOWN_AS[backend])
    if same and backend == "socket" and (unix or written.get("path")):
        same = unix is not None and unix["path"] in ("", written.get("path"))
    if same:
        return ""
    new = Value(f"null,id={escape(written.get('id'))}", first="backend")
    if unix:
        new.set("backend", "socket")
        new.set("path", unix["path"])
    elif inet:
        new.set("backend", "socket")
        new.set("host", inet["host"].strip("[]"))
        new.set("port", inet["port"])
    elif shown.startswith("pty"):
        new.set("backend", "pty")
    elif shown != "null":
        raise Refused(
            f"character device {written.get('id')} was changed while the guest ran, and QEMU does not show enough of "
            f"what it is now ({shown}) to make it again"
        )
    found = unix or inet
    if found and found["server"]:
        new.set("server", "on")
        new.set("wait", "off")
    return str(new)


def chardev_add(name: str, shown: str, run_directory: str) -> Command:
    """Return the command that makes a character device again; a listening socket is put into `run_directory`.

    :param shown: its ``filename`` in query-chardev.
    :raise Refused: when QEMU does not show enough of it.
    """
    if shown == "null":
        return "chardev-add", {"id": name, "backend": {"type": "null", "data": {}}}
    if re.match(r"(disconnected:)?unix:.*,server", shown, re.DOTALL):
        address = {"type": "unix", "data": {"path": f"{run_directory}/{name}.sock"}}
        data = {"addr": address, "server": True, "wait": False}
        return "chardev-add", {"id": name, "backend": {"type": "socket", "data": data}}
    if shown == "pty" or shown.startswith("pty:"):
        return "chardev-add", {"id": name, "backend": {"type": "pty", "data": {}}}
    raise Refused(
        f"character device {name} ({shown}) was added while the guest ran, and QEMU does not show enough of it to "
        "make it again: start the destination with it by a template, or unplug its device"
    )
