"""One migration: which step is safe next, when to switch, throttle or give up, and what it will cost. Pure."""
