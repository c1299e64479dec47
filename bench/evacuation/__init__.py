"""Emptying a whole host: beside a lower bound, its own prediction, and what others do, simulated and on real QEMU."""
