#!/usr/bin/python
"""Reads the fingerprints of the keys in a file."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: signing_key_info
short_description: Read the fingerprints of the keys in a file
description:
  - Returns the fingerprint of each primary key that gpg reads in the file. It imports none.
  - A module of its own because gpg's output is a table of rows that belong together.
  - Changes nothing; supports check mode.
options:
  path:
    description: The file with keys, armoured or not.
    type: path
    required: true
author: [vllm-fleet]
"""
EXAMPLES = r"""
- signing_key_info:
    path: /etc/apt/keyrings/vendor.asc
  register: __apt_repository_shown
"""
RETURN = r"""
fingerprints:
  description: The fingerprints of the primary keys, in the order of the file.
  type: list
  returned: success
"""


def primary_fingerprints(text: str) -> list[str]:
    """The fingerprints of primary keys in the output of ``gpg --with-colons``: the row after each key's own."""
    fingerprints, primary = [], False
    for line in text.splitlines():
        fields = line.split(":")
        if fields[0] in ("pub", "sub", "sec", "ssb"):
            primary = fields[0] in ("pub", "sec")
        elif fields[0] == "fpr" and primary and len(fields) > 9:
            fingerprints.append(fields[9])
            primary = False
    return fingerprints


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(argument_spec={"path": {"type": "path", "required": True}}, supports_check_mode=True)
    words = ["gpg", "--batch", "--show-keys", "--with-colons", module.params["path"]]
    module.exit_json(changed=False, fingerprints=primary_fingerprints(module.run_command(words, check_rc=True)[1]))


if __name__ == "__main__":
    main()
