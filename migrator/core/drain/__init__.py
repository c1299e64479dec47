"""Emptying hosts: what to do next with every guest, decided of a snapshot."""
