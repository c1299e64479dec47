"""What identifies the machine the controller runs on."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """Tells one boot of this machine from the next."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
