"""Moves running QEMU/KVM guests between hosts, speaking QMP to both ends."""

__version__ = "0.1.0"
