"""Moves a guest of libvirt by its Python binding and nothing else: what a program in Python takes at the least.

``python -m bench.bare_libvirt SOURCE DESTINATION GUEST ADDRESS``: URIs of the daemons, the guest's name, and where its
stream goes. No check, no record, nobody who looks while it copies.
"""

from __future__ import annotations

import os
import sys

from migrator.libvirt.binding import load


def main(source: str, destination: str, guest: str, address: str) -> None:
    """Move it.

    :raise libvirt.libvirtError: it is not moved.
    """
    libvirt = load()
    here, there = libvirt.open(source), libvirt.open(destination)
    flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE
    where = {libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{address}"}
    here.lookupByName(guest).migrate3(there, where, flags)
    os._exit(0)  # as `migrator direct` ends


if __name__ == "__main__":
    main(*sys.argv[1:])
