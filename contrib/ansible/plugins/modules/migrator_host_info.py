#!/usr/bin/python
"""What a migrator service knows of its hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: migrator_host_info
short_description: Hosts of a migrator service, as they are now
description:
  - Returns what the service knows of one host or of all, and of their guests where that is asked for.
  - Changes nothing.
extends_documentation_fragment: migrator.migrator.service
options:
  host:
    description: Only this host, as the service's configuration names it.
    type: str
  guests:
    description: The guests, too.
    type: bool
    default: false
  refresh:
    description: Have the service look at the host first, or at all of them, rather than tell what it saw last.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
author:
  - The migrator project
"""

EXAMPLES = r"""
- name: Wait until the host is back, and the service sees it
  migrator.migrator.migrator_host_info:
    host: host-1
    refresh: true
  register: seen
  until: seen is succeeded and seen.hosts[0].up
  retries: 60
  delay: 10
  delegate_to: localhost
"""

RETURN = r"""
hosts:
  description: By name; each as C(GET /api/v1/hosts/HOST) has it.
  returned: always
  type: list
  elements: dict
  sample: [{"host": "host-1", "state": "active", "cordoned": false, "up": true, "error": "", "guests": 12}]
guests:
  description: By host and name; each as C(GET /api/v1/guests/GUEST) has it.
  returned: with O(guests)
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.migrator.migrator.plugins.module_utils.service import (
    OPTIONS,
    Service,
    ServiceError,
)


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "host": {"type": "str"},
            "guests": {"type": "bool", "default": False},
            "refresh": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    host = module.params["host"]
    result = {"changed": False}
    try:
        service = Service(module.params)
        if module.params["guests"] or module.params["refresh"]:
            refresh = "true" if module.params["refresh"] else None
            guests = service.items("guests", host=host, refresh=refresh)
            if module.params["guests"]:
                result["guests"] = guests
        result["hosts"] = [service.get("hosts", host)] if host else service.items("hosts")
    except ServiceError as error:
        module.fail_json(msg=str(error), **error.result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
