#!/usr/bin/python
"""Brings guests home to a host that was emptied."""

from __future__ import annotations

DOCUMENTATION = r"""
module: migrator_restore
short_description: End the maintenance of a host and bring its guests home
description:
  - Has a migrator service bring those guests home that evacuations moved away from a host, and waits until they are.
  - A host that is active, and from which nobody is away, is left as it is. One that is being filled again already is
    waited for.
  - Fails when guests do not come home, and names them; they run where they are, and the host takes guests again.
extends_documentation_fragment:
  - migrator.migrator.service
  - migrator.migrator.moving
options:
  guests:
    description: Bring its guests home; without it the host only takes guests again, as by C(migrator activate).
    type: bool
    default: true
attributes:
  check_mode:
    support: full
author:
  - The migrator project
"""

EXAMPLES = r"""
- name: Bring the guests home
  migrator.migrator.migrator_restore:
    host: "{{ inventory_hostname }}"
    server: https://migrator.example:8443
    token_file: /etc/ansible/migrator.token
  delegate_to: localhost
"""

RETURN = r"""
evacuation:
  description: The restore, as C(GET /api/v1/evacuations/ID) has it.
  returned: when one was begun or waited for
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.migrator.migrator.plugins.module_utils.service import (
    MOVING,
    OPTIONS,
    Service,
    ServiceError,
    left_text,
)


def _activate(service, name, host, check_mode, result):
    if host["state"] != "active":
        result["changed"] = True
        if not check_mode:
            service.post("hosts", name, "activate")


def _begun(service, params, host):
    """Begin a restore and return it; ``None`` where there is nobody to bring home."""
    try:
        return service.post("hosts", params["host"], "restore", policy=params["policy"])
    except ServiceError as error:
        # An active host that could take guests, and that nothing else is done to: nobody is away.
        if error.code != "conflict" or host["state"] != "active" or host["cordoned"]:
            raise
        if service.under_way(params["host"]) is not None:
            raise
        return None


def _restore(service, params, check_mode, result):
    name = params["host"]
    host = service.get("hosts", name)
    one = service.under_way(name)
    if one is not None and one["kind"] != "restore":
        raise ServiceError(f"{name} is being emptied by {one['id']}: migrator cancel {one['id']} first")
    if one is None and not params["guests"]:
        _activate(service, name, host, check_mode, result)
        return
    if check_mode:
        result["changed"] = one is None and host["state"] != "active"
        return
    if one is None:
        one = _begun(service, params, host)
        if one is None:
            return
        result["changed"] = True
    result["evacuation"] = one
    if not params["wait"]:
        return
    one = result["evacuation"] = service.wait(one, params["wait_timeout"], params["poll"])
    if one["state"] != "completed":
        raise ServiceError(
            f"not everyone is home on {name}: restore {one['id']} is {one['state']}, {left_text(one)}"
        )


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            **MOVING,
            "guests": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    result = {"changed": False}
    try:
        _restore(Service(module.params), module.params, module.check_mode, result)
    except ServiceError as error:
        module.fail_json(msg=str(error), **{**result, **error.result})
    module.exit_json(**result)


if __name__ == "__main__":
    main()
