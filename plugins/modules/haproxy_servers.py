#!/usr/bin/python
"""Takes servers of a running HAProxy out of traffic and back, over its runtime socket."""

from __future__ import annotations

import fnmatch
import os
import socket
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: haproxy_servers
short_description: Drain servers of a running HAProxy, or make them ready
description:
  - Sets the state of every server whose name matches, and waits until they have reached it.
  - >-
    A module of its own because community.general.haproxy takes one server a task, waits for ever for the drain of a
    server that is down, and reports each new session as a change.
  - Where there is no socket there is no HAProxy yet, and nothing to do.
options:
  path:
    description: The runtime socket, which must have the level admin.
    type: path
    required: true
  servers:
    description: Shell patterns of server names, in any backend.
    type: list
    elements: str
    required: true
  state:
    description:
      - C(drained) gives a server no new session and waits for the end of those that it has.
      - C(ready) gives it traffic again, and waits until the health check has seen that those of I(expected) are up.
    type: str
    choices: [drained, ready]
    required: true
  expected:
    description:
      - Servers that must come up, as NAME=ADDRESS:PORT, with an IPv6 address in brackets.
      - One that HAProxy knows otherwise, or not yet, is not waited for; its next configuration brings it.
    type: list
    elements: str
    default: []
  wait_seconds:
    description: How long to wait; 0 sets the state and returns.
    type: int
    default: 0
author: [vllm-fleet]
"""
EXAMPLES = r"""
- haproxy_servers:
    path: /run/haproxy/admin.sock
    servers: ["gpu-0_*"]
    state: drained
    wait_seconds: 600
"""
RETURN = r"""
servers:
  description: The servers that match, as backend/server.
  type: list
  returned: success
"""
#: Bit of the administrative state: a drain that was requested over the socket.
FORCED_DRAIN = 8


def ask(path: str, command: str) -> str:
    """Sends one command; returns the whole answer of HAProxy."""
    text = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(30)
        channel.connect(path)
        channel.sendall((command + "\n").encode())
        while True:
            block = channel.recv(1 << 16)
            if not block:
                return text.decode()
            text += block


def matching(path: str, patterns: list[str]) -> dict[str, tuple[bool, str]]:
    """The servers that match: backend/server -> (whether a drain was requested, NAME=ADDRESS:PORT)."""
    servers = {}
    for line in ask(path, "show servers state").splitlines():
        row = line.split()
        # be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state ... the nineteenth is srv_port
        if len(row) > 18 and row[6].isdigit() and any(fnmatch.fnmatchcase(row[3], pattern) for pattern in patterns):
            address = f"[{row[4]}]" if ":" in row[4] else row[4]
            servers[f"{row[1]}/{row[3]}"] = (bool(int(row[6]) & FORCED_DRAIN), f"{row[3]}={address}:{row[18]}")
    return servers


def statistics(path: str) -> dict[str, tuple[int, str]]:
    """Sessions and status of each server: backend/server -> (sessions, status)."""
    rows = [line.split(",") for line in ask(path, "show stat").lstrip("# ").splitlines()]
    names = rows[0] if rows else []
    rows_by_server = {}
    for row in rows[1:]:
        if len(row) == len(names):
            values = {name: row[place] for place, name in enumerate(names)}
            rows_by_server[f"{values['pxname']}/{values['svname']}"] = (
                int(values["scur"] or 0),
                values["status"],
            )
    return rows_by_server


def unfinished(path: str, servers: list[str], state: str) -> list[str]:
    """Why a server has not reached the state, for each such server."""
    seen = statistics(path)
    if state == "drained":
        return [f"{name} has {seen[name][0]} sessions" for name in servers if name in seen and seen[name][0]]
    late = [name for name in servers if name in seen and seen[name][1].split()[:1] != ["UP"]]
    return [f"{name} is {seen[name][1]}" for name in late]


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "servers": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["drained", "ready"], "required": True},
            "expected": {"type": "list", "elements": "str", "default": []},
            "wait_seconds": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    path, state = module.params["path"], module.params["state"]
    if not os.path.exists(path):
        module.exit_json(changed=False, servers=[], msg="there is no HAProxy yet")
    try:
        servers = matching(path, module.params["servers"])
        wrong = [name for name, (drained, _) in sorted(servers.items()) if drained != (state == "drained")]
        expected = set(module.params["expected"])
        awaited = [name for name, (_, place) in sorted(servers.items()) if state == "drained" or place in expected]
        if module.check_mode:
            module.exit_json(changed=bool(wrong), servers=sorted(servers))
        for name in wrong:
            reply = ask(path, f"set server {name} state {'drain' if state == 'drained' else 'ready'}").strip()
            if reply:
                module.fail_json(msg=f"HAProxy refuses the state of {name}: {reply}")
        deadline = time.monotonic() + module.params["wait_seconds"]
        left = unfinished(path, awaited, state)
        while left and time.monotonic() < deadline:
            time.sleep(0.2)
            left = unfinished(path, awaited, state)
    except OSError as fault:
        module.fail_json(msg=f"HAProxy does not answer at {path}: {fault}")
    if left and module.params["wait_seconds"]:
        module.fail_json(msg=f"after {module.params['wait_seconds']} s {', '.join(left)}")
    module.exit_json(changed=bool(wrong), servers=sorted(servers))


if __name__ == "__main__":
    main()
