"""What is decided, apart from how it is carried out: no I/O, no clock, no asyncio."""
