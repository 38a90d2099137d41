"""Networks that containers get: the host's address in them, the others, and those that are rejected."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import load_plugin

addresses = load_plugin("plugins/filter/addresses.py")
PRIVATE = [IPv4Network(network) for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]


@st.composite
def networks(draw: st.DrawFn) -> IPv4Network:
    around = draw(st.sampled_from(PRIVATE))
    length = draw(st.integers(around.prefixlen, 28))
    inside = draw(st.integers(int(around[0]), int(around[-1])))
    return IPv4Network((inside, length), strict=False)


@given(networks())
def test_a_network_is_the_hosts_address_and_those_of_containers(network: IPv4Network) -> None:
    host = IPv4Address(addresses.first_address(str(network)))
    parts = [IPv4Network(part) for part in addresses.container_addresses(str(network))]
    assert host in network
    assert not any(host in part for part in parts)
    assert sum(part.num_addresses for part in parts) == network.num_addresses - 1
    assert addresses.network_error(str(network), [str(host), "8.8.8.8"]) == ""
    assert str(network[-2]) in addresses.network_error(str(network), [str(network[-2])])


@pytest.mark.parametrize(
    "network", ["", "10.0.0.1", "10.0.0.1/24", "8.8.8.0/24", "fd00::/64", "10.0.0.0/29", "0.0.0.0/0", "10.0.0.0/x"]
)
def test_what_is_no_network_for_containers_is_rejected(network: str) -> None:
    error = addresses.network_error(network, [])
    assert f"'{network}'" in error
    assert "172.31.213.0/24" in error
