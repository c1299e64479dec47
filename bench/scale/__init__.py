"""``python -m bench.scale [PART...]``: many migrations at once, QEMUs that are simulated in other processes."""
