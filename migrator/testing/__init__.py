"""What tests of migrations need: a guest that starts at once, real QEMU processes, hosts on one machine."""
