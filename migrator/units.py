"""Units: what a person types, into base units and back.

Inside and on every wire: bytes, bytes per second, seconds, ratios of 0 to 1. Only here do suffixes exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from migrator.errors import UsageError
from migrator.text import shortened

#: Longest duration and largest size that can be meant: a century, and what a signed 64-bit number holds.
_MOST_SECONDS = 100 * 365 * 86400.0
_MOST_BYTES = float(2**63 - 1024)

_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: dict[str, float] = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _BYTES[f"{_letter}ib"] = _BYTES[_letter] = 1024**_power
    _BYTES[f"{_letter}b"] = 1000**_power


def _scaled(text: str, units: Mapping[str, float], most: float, what: str, example: str) -> float:
    match = re.fullmatch(rf"{_NUMBER}\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in units:
        raise UsageError(f"{shortened(text)} is not {what}: write it like {example}")
    value = float(match[1]) * units[match[2]]
    if value > most:
        raise UsageError(f"{shortened(text)} is more than can be meant: write it like {example}")
    return value


def seconds(text: str) -> float:
    """``300ms``, ``2s``, ``10m``, ``1.5h``; a bare number is seconds.

    :raise UsageError: when it is none of these.
    """
    return _scaled(text, _SECONDS, _MOST_SECONDS, "a duration", "300ms, 2s or 10m")


def size(text: str) -> int:
    """``512MiB`` (also ``512M``) is 2**20 based, ``512MB`` 10**6 based; a bare number is bytes.

    :raise UsageError: when it is neither.
    """
    return int(_scaled(text, _BYTES, _MOST_BYTES, "a size", "512MiB or 4GiB"))


def rate(text: str) -> int:
    """Bytes per second from ``1GiB/s``, ``100MiB/s`` or, as links are sold, ``10Gbit/s`` (10**9 bits).

    :raise UsageError: when it is none of these.
    """
    plain = text.strip().lower().removesuffix("/s")
    bits = re.fullmatch(rf"{_NUMBER}\s*([kmgt]?)bit", plain)
    if bits is not None:
        value = float(bits[1]) * 1000.0 ** ("_kmgt".index(bits[2]) if bits[2] else 0) / 8
        if value <= _MOST_BYTES:
            return round(value)
    try:
        return size(plain)
    except UsageError:
        raise UsageError(f"{shortened(text)} is not a bandwidth: write it like 1GiB/s or 10Gbit/s") from None


def ratio(text: str) -> float:
    """``80%`` or ``0.8``.

    :raise UsageError: when it is neither, or outside 0 to 1.
    """
    plain = text.strip()
    match = re.fullmatch(rf"{_NUMBER}\s*(%?)", plain)
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"{shortened(text)} is not a share between 0 and 1: write it like 80% or 0.8")
    return value


def show_seconds(value: float) -> str:
    """For people: ``14 ms``, ``2.5 s``, ``3 min 10 s``."""
    if value < 0.001:
        return f"{value * 1e6:.0f} us"
    if value < 1:
        return f"{value * 1e3:.{1 if value < 0.01 else 0}f} ms"
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def show_bytes(value: float) -> str:
    """For people, 1024 based: ``96.0 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def show_rate(value: float) -> str:
    """For people: ``117.0 MiB/s``."""
    return f"{show_bytes(value)}/s"


def show_ratio(value: float) -> str:
    """For people: ``80%``."""
    return f"{value * 100:.0f}%"
