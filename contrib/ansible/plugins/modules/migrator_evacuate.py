#!/usr/bin/python
"""Empties a host of its guests."""

from __future__ import annotations

DOCUMENTATION = r"""
module: migrator_evacuate
short_description: Empty a host of its guests
description:
  - Has a migrator service move all guests of a host to others, and waits until the host is empty.
  - A host that is empty and in maintenance is left as it is. One that is being emptied already is waited for; what is
    asked for here is not added to that.
  - Fails when guests are left, and names them. The host then stays as the evacuation leaves it.
  - In check mode the service plans it, and the task fails where guests could not leave.
extends_documentation_fragment:
  - migrator.migrator.service
  - migrator.migrator.moving
options:
  accept:
    description: Codes of findings that are accepted.
    type: list
    elements: str
    default: []
  deadline:
    description: When the host is to be empty, as C(2026-12-01T05:00:00+01:00), or C(+90m) from now on.
    type: str
  on_deadline:
    description: Whether the evacuation goes on after its deadline, or begins nothing more.
    type: str
    choices: [continue, stop]
    default: continue
attributes:
  check_mode:
    support: full
author:
  - The migrator project
"""

EXAMPLES = r"""
- name: Empty the host
  migrator.migrator.migrator_evacuate:
    host: "{{ inventory_hostname }}"
    server: https://migrator.example:8443
    token_file: /etc/ansible/migrator.token
    deadline: +90m
  delegate_to: localhost
"""

RETURN = r"""
evacuation:
  description: As C(GET /api/v1/evacuations/ID) has it; not there where the host was empty already.
  returned: when one was begun or waited for
  type: dict
plan:
  description: As C(POST /api/v1/plans) has it.
  returned: in check mode, where the host is not empty
  type: dict
"""

import re
from datetime import datetime, timedelta, timezone

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.migrator.migrator.plugins.module_utils.service import (
    MOVING,
    OPTIONS,
    Service,
    ServiceError,
    guest_text,
    left_text,
)

_SECONDS = {"s": 1, "m": 60, "h": 3600}


def _deadline(text):
    """Return the deadline as the service takes it: with its zone."""
    if text is None or not text.startswith("+"):
        return text
    found = re.fullmatch(r"\+(\d+)([smh])", text)
    if not found:
        raise ServiceError(f"deadline: {text} is neither +90m nor a time with its zone")
    ahead = timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
    return (datetime.now(timezone.utc) + ahead).isoformat()


def _planned(service, params, result):
    """Say what would happen; raise where guests would be left."""
    plan = service.post("plans", host=params["host"], policy=params["policy"], accept=params["accept"])
    result.update(changed=True, plan=plan)
    staying = [each for each in plan["guests"] if not each["possible"]]
    if staying:
        told = ", ".join(f"{guest_text(each)} ({each['reason']})" for each in staying)
        raise ServiceError(f"{params['host']} would not be empty: {told}")


def _evacuate(service, params, check_mode, result):
    deadline = _deadline(params["deadline"])
    host = service.get("hosts", params["host"])
    one = service.under_way(params["host"])
    if one is not None and one["kind"] != "evacuate":
        raise ServiceError(
            f"{params['host']} is being filled again by {one['id']}: migrator cancel {one['id']} first"
        )
    if one is None and host["state"] == "maintenance" and host["up"] and not host["guests"]:
        return
    if check_mode:
        if one is None:
            _planned(service, params, result)
        return
    if one is None:
        one = service.post(
            "hosts",
            params["host"],
            "evacuate",
            policy=params["policy"],
            accept=params["accept"],
            deadline=deadline,
            on_deadline=params["on_deadline"],
        )
        result["changed"] = True
    result["evacuation"] = one
    if not params["wait"]:
        return
    one = result["evacuation"] = service.wait(one, params["wait_timeout"], params["poll"])
    if one["state"] != "completed":
        raise ServiceError(
            f"{params['host']} is not empty: evacuation {one['id']} is {one['state']}, {left_text(one)}"
        )


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            **MOVING,
            "accept": {"type": "list", "elements": "str", "default": []},
            "deadline": {"type": "str"},
            "on_deadline": {"type": "str", "choices": ["continue", "stop"], "default": "continue"},
        },
        supports_check_mode=True,
    )
    result = {"changed": False}
    try:
        _evacuate(Service(module.params), module.params, module.check_mode, result)
    except ServiceError as error:
        module.fail_json(msg=str(error), **{**result, **error.result})
    module.exit_json(**result)


if __name__ == "__main__":
    main()
