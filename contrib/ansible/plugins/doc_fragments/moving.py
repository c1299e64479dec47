"""Options of the modules that have guests moved."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of what is moved, and how long a task waits for it."""

    DOCUMENTATION = r"""
options:
  host:
    description: The host, as the service's configuration names it.
    type: str
    required: true
  policy:
    description: What may be done to the guests to move them; by default each guest's own.
    type: str
  wait:
    description: Wait until it has ended.
    type: bool
    default: true
  wait_timeout:
    description: Seconds to wait; what was begun goes on after that, and the task fails.
    type: float
    default: 7200
  poll:
    description: Seconds between two looks.
    type: float
    default: 2
"""
