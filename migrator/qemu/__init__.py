"""The adapter to QEMU: the only place that speaks QMP, knows its units, or touches its process."""
