#!/usr/bin/python
"""Ansible module: test whether the kernel accepts nftables rules from this host."""

from __future__ import annotations

import os
import socket
import struct

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: firewall_facts
short_description: Asks the kernel whether it takes nftables rules from this host
description:
  - Needs no program of nftables and changes nothing.
  - Returns the fact C(nftables_error), empty when all is well.
author: the platform's maintainers
"""
EXAMPLES = """
- name: Learn whether the kernel takes rules
  firewall_facts:
"""
RETURN = """
ansible_facts:
  description: C(nftables_error), the kernel's error or an empty string.
  returned: always
  type: dict
"""

# linux/netfilter/nfnetlink.h, nf_tables.h, netlink.h
NETLINK_NETFILTER = 12
NFT_MSG_GETGEN = 10 << 8 | 16
NLM_F_REQUEST = 1
NLMSG_ERROR = 2


def nftables_error() -> str:
    """Ask for the number of the ruleset's generation; return the kernel's error, or nothing."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
            netlink.settimeout(5)
            netlink.send(struct.pack("=IHHIIBBH", 20, NFT_MSG_GETGEN, NLM_F_REQUEST, 1, 0, 0, 0, 0))
            answer = netlink.recv(4096)
    except OSError as error:
        return str(error.strerror or error)
    kind, code = struct.unpack_from("=4xH10xi", answer)
    return os.strerror(-code) if kind == NLMSG_ERROR and code else ""


def main() -> None:
    """Answer Ansible."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, ansible_facts={"nftables_error": nftables_error()})


if __name__ == "__main__":
    main()
