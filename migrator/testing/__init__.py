"""Parts for tests of migrations: a guest that starts at once, real QEMU processes, hosts on one machine."""
