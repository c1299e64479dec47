"""Decisions, apart from how they are carried out: no I/O, no clock, no asyncio."""
