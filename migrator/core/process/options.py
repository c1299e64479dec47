"""QEMU's own way of writing options: words and ``key=value`` parted by commas, a comma doubled, or JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

#: Options that stand alone; every other takes the argument after it. Those of every version since 2.0 and of every
#: target, whatever has become of them.
_ALONE = frozenset(
    {
        *("S", "alt-grab", "async-teardown", "audio-help", "ctrl-grab", "curses", "daemonize"),
        *("enable-fips", "enable-kvm", "enable-sync-profile", "full-screen", "h", "help", "jitdump"),
        *("localtime", "mem-prealloc", "no-acpi", "no-fd-bootchk", "no-frame", "no-hpet", "no-kvm"),
        *("no-kvm-irqchip", "no-kvm-pit", "no-kvm-pit-reinjection", "no-quit", "no-reboot", "no-shutdown"),
        *("no-user-config", "nodefaults", "nodefconfig", "nographic", "nouserconfig", "old-param"),
        *("one-insn-per-tb", "only-migratable", "perfmap", "portrait", "preconfig", "rtc-td-hack", "s"),
        *("sdl", "semihosting", "singlestep", "snapshot", "tdf", "usb", "version", "win2k-hack"),
        *("xen-attach", "xen-create", "xen-domid-restrict"),
    }
)
#: Key of a first word without ``=``, for options with parts.
FIRST = {
    "M": "type",
    "accel": "accel",
    "audio": "driver",
    "audiodev": "driver",
    "blockdev": "driver",
    "chardev": "backend",
    "cpu": "model",
    "device": "driver",
    "display": "type",
    "drive": "file",
    "fsdev": "fsdriver",
    "fw_cfg": "name",
    "m": "size",
    "machine": "type",
    "mon": "chardev",
    "net": "type",
    "netdev": "type",
    "nic": "type",
    "numa": "type",
    "object": "qom-type",
    "option-rom": "romfile",
    "plugin": "file",
    "smp": "cpus",
    "spice": "spice",
    "tpmdev": "type",
    "trace": "enable",
    "virtfs": "fsdriver",
    "vnc": "vnc",
}


def read(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """Part a command line (its program left out) into options without their dashes, each with its value.

    What is no option, a disk image given by its name alone, has the option ``""``.
    """
    found: list[tuple[str, str | None]] = []
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-") or word == "-":
            found.append(("", word))
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        value = None if name in _ALONE else next(rest, "")
        if name == "display" and value is not None and value.startswith("vnc="):
            name, value = "vnc", value.removeprefix("vnc=")  # as QEMU reads it
        found.append((name, value))
    return found


def write(options: Sequence[tuple[str, str | None]]) -> list[str]:
    """Join options into a command line, the opposite of :func:`read`."""
    words: list[str] = []
    for name, value in options:
        words += [f"-{name}"] if name else []
        words += [] if value is None else [value]
    return words


def escape(text: str) -> str:
    """Return `text` as a value among others: its commas doubled."""
    return text.replace(",", ",,")


#: Deeper nesting is no option of QEMU's; libvirt ends at 200 images based on each other.
_DEEPEST = 300


def _split(text: str) -> list[str]:
    # A comma that is followed by another stands for itself.
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def _depth(text: str) -> int:
    """Return how deep a text nests at the most, were it JSON."""
    depth = most = 0
    for char in text:
        if char in "{[":
            depth += 1
            most = max(most, depth)
        elif char in "}]":
            depth -= 1
    return most


class Value:
    """The value of one option, read and changed by key; what is not changed stays as it was written.

    :param first: the key that a first word without ``=`` belongs to.
    """

    def __init__(self, text: str, *, first: str) -> None:
        self._first = first
        self._json: dict[str, Any] | None = None
        self._parts: list[tuple[str, str | None]] = []
        if text.startswith("{") and _depth(text) <= _DEEPEST:
            try:
                read = json.loads(text)
                self._json = read if isinstance(read, dict) else {}
                return
            except ValueError:
                pass  # then it is a word like any other
        for number, part in enumerate(_split(text)):
            key, equals, value = part.partition("=")
            if equals:
                self._parts.append((key, value))
            elif number == 0:
                self._parts.append(("", part))
            elif part:  # a comma at the end says nothing
                self._parts.append((part, None))

    def get(self, key: str) -> str:
        """Return the last value of `key`, nested keys parted by dots; empty where there is none.

        A lone word is ``on``, and with ``no`` before it ``off``.
        """
        if self._json is not None:
            return _as_text(self._inner(key))
        found = ""
        for name, value in self._parts:
            if self._key(name, value) == key:
                found = "on" if value is None else value
            elif value is None and name == f"no{key}":
                found = "off"
        return found

    def all(self, key: str) -> list[str]:
        """Return every value of a key that may be repeated; in JSON a list of strings, or of objects with ``str``."""
        if self._json is not None:
            inner = self._inner(key)
            entries = inner if isinstance(inner, list) else []
            return [str(entry.get("str", "")) if isinstance(entry, dict) else str(entry) for entry in entries]
        return [value or "" for name, value in self._parts if name == key]

    def is_on(self, key: str) -> bool:
        """Tell whether a switch is on."""
        return self.get(key).lower() in ("on", "yes", "true", "y")

    @property
    def keys(self) -> frozenset[str]:
        """Every key that is set, nested ones with dots."""
        if self._json is not None:
            return frozenset(_keys(self._json))
        return frozenset(self._key(*part) for part in self._parts) - {""}

    def flat(self) -> dict[str, str]:
        """Return every key with its last value as :meth:`get` tells it; nested keys with dots, entries of lists by
        number.
        """
        if self._json is not None:
            return _flat(self._json)
        parts: dict[str, str] = {}
        for name, value in self._parts:
            if name and value is not None:
                parts[name] = value
            elif self._first and value is not None:
                parts[self._first] = value
            else:
                word = name or value or ""
                is_off = word.startswith("no") and len(word) > 2
                parts |= {word[2:]: "off"} if is_off else {word: "on"} if word else {}
        return parts

    def set(self, key: str, value: str, *, number: bool = False) -> None:
        """Set `key`, where it stands already or at the end.

        :param number: in JSON it is one.
        """
        if self._json is not None:
            inner, _, last = key.rpartition(".")
            holder = self._inner(inner) if inner else self._json
            if isinstance(holder, dict):
                old = holder.get(last)
                on = {"on": True, "off": False}
                is_switch = (old is None or isinstance(old, bool)) and value in on
                holder[last] = int(value) if number else on[value] if is_switch else value
            return
        names = [self._key(*part) for part in self._parts]
        at = next((n for n, name in enumerate(names) if name in (key, f"no{key}")), None)
        if at is None:
            self._parts.append((key, value))
            return
        self._parts[at] = (self._parts[at][0] and key, value)
        rest = [(n, part) for n, part in enumerate(self._parts) if n > at]
        for n, (name, _) in reversed(rest):
            if name in (key, f"no{key}"):
                del self._parts[n]

    def remove(self, *keys: str) -> None:
        """Leave out keys, and whatever is nested in them."""

        def goes(name: str) -> bool:
            return any(name in (key, f"no{key}") or name.startswith(f"{key}.") for key in keys)

        if self._json is not None:
            for key in keys:
                holder, _, last = key.rpartition(".")
                inner = self._inner(holder) if holder else self._json
                if isinstance(inner, dict):
                    inner.pop(last, None)
        else:
            self._parts = [part for part in self._parts if not goes(self._key(*part))]

    def _key(self, name: str, value: str | None) -> str:
        """Return the key of one part; empty for what stands after a comma at the end."""
        return name if name or value is None else self._first

    def _inner(self, path: str) -> Any:
        inner: Any = self._json
        for key in path.split("."):
            inner = inner.get(key) if isinstance(inner, dict) else None
        return inner

    def __str__(self) -> str:
        if self._json is not None:
            return json.dumps(self._json)
        return ",".join(
            escape(value or "") if not name else name if value is None else f"{name}={escape(value)}"
            for name, value in self._parts
        )


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None or isinstance(value, (dict, list)) else str(value)


def _flat(value: Any, before: str = "") -> dict[str, str]:
    if not isinstance(value, (dict, list)):
        return {before: _as_text(value)}
    flat: dict[str, str] = {}
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        flat |= _flat(inner, f"{before}.{key}" if before else str(key))
    return flat


def _keys(value: dict[str, Any], before: str = "") -> list[str]:
    keys: list[str] = []
    for key, inner in value.items():
        keys += _keys(inner, f"{before}{key}.") if isinstance(inner, dict) else [before + key]
    return keys
