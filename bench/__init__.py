"""Costs of `migrator`, measured against a bare script and against libvirt: ``make bench``, docs/benchmarks.md."""
