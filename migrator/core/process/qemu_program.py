"""Programs that are QEMUs and run guests: told by their names, or by the options they were started with.

A QEMU may be wrapped, renamed or patched by whoever ships it. What must never be taken for one is a program that runs
QEMU for others, or hands it a socket: it is killed where a QEMU is meant to be.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Options that few programs but QEMU have; two of them tell it, whatever its program is called.
TELLING = (
    *(
        "qmp",
        "qmp-pretty",
        "mon",
        "monitor",
        "chardev",
        "machine",
        "M",
        "accel",
        "enable-kvm",
        "smp",
        "drive",
    ),
    *("hda", "blockdev", "device", "netdev", "nic", "incoming", "nodefaults", "nographic", "no-user-config"),
    *("cdrom", "vnc", "readconfig", "vga", "serial", "daemonize", "pidfile", "kernel", "bios", "display"),
    *("object", "global", "boot"),
)
_TOLD_BY = 2
_SYSTEM = re.compile(r"(^|\W)qemu-(system-\w|kvm)|^(qemu|kvm|kvm-spice)$")
#: Programs that run QEMU and have its options on their own command lines.
_RUNNERS = re.compile(
    r"(ba|da|z|k|a|fi|)sh|busybox|python[\d.]*|perl|ruby|sudo|doas|su|env|nice|ionice|nohup|setsid|timeout|time|"
    r"chrt|taskset|numactl|prlimit|setpriv|runuser|stdbuf|script|screen|tmux.*|systemd-run|nsenter|unshare|ip|"
    r"chroot|strace|ltrace|gdb|xargs|find|grep|ssh|parallel|make|bwrap|firejail|flock|start-stop-daemon"
)


def is_qemu_by_name(program: str) -> bool:
    """Tell whether a program of that name, its directory left out, is a QEMU."""
    return _SYSTEM.search(program) is not None


def is_qemu_by_words(program: str, count: int) -> bool:
    """Tell whether a program of any name is a QEMU, because so many of its arguments are in :data:`TELLING`."""
    return count >= _TOLD_BY and not _RUNNERS.fullmatch(program)


def is_qemu(program: str, arguments: Sequence[str]) -> bool:
    """Tell whether a process is a QEMU.

    :param program: name of its program, without a directory.
    :param arguments: its command line; empty where it cannot be read.
    """
    telling = {f"{dash}{option}" for option in TELLING for dash in ("-", "--")}
    return is_qemu_by_name(program) or is_qemu_by_words(
        program, sum(word in telling for word in arguments[1:])
    )
