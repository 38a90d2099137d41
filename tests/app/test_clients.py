"""Who counts as one client, whatever X-Forwarded-For claims."""

import ipaddress
import re

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.prometheus import METHODS
from celery_durable.web.clients import client_address, counted_as
from durable_console.flower.settings import Settings
from tests.support import Api

PROXIES = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::5"))
REAL = "198.51.100.7"
addresses = st.ip_addresses().map(str)
garbage = st.text(alphabet=st.characters(blacklist_characters=",", max_codepoint=255), max_size=80)
forged = st.lists(st.one_of(addresses, garbage, st.just("x" * 50_000)), max_size=30).map(", ".join)

pytestmark = pytest.mark.attack("named proxies alone are believed")


@given(forged)
def test_what_a_client_claims_counts_for_nothing(claimed: str) -> None:
    """A trusted proxy appends whom it has seen; that counts, and a peer that is no proxy speaks for itself."""
    assert client_address("10.1.2.3", f"{claimed}, {REAL}", PROXIES) == REAL
    assert client_address("10.1.2.3", f"{claimed}, {REAL}, 10.9.9.9, 2001:db8::5", PROXIES) == REAL
    assert client_address(REAL, claimed, PROXIES) == REAL


@given(forged, st.one_of(addresses, garbage))
def test_the_answer_is_always_an_address(claimed: str, peer: str) -> None:
    """Whatever comes in: bounded, and parsed or the peer's own."""
    seen = client_address(peer, claimed, PROXIES)
    assert seen == peer or ipaddress.ip_address(seen)
    assert len(counted_as(seen)) <= len("ffff:ffff:ffff:ffff::/64")


@pytest.mark.parametrize(
    ("header", "client"),
    [
        ("", "10.0.0.1"),
        (" , ", "10.0.0.1"),
        ("garbage", "10.0.0.1"),
        (f"{REAL}, garbage", "10.0.0.1"),  # not further to the left
        (f"{REAL}:4711", REAL),
        ("[2001:db8::9]:4711", "2001:db8::9"),
        (f"::ffff:{REAL}", "::ffff:c633:6407"),
        ("10.0.0.7", "10.0.0.7"),  # a client inside of the proxies' network
        ("unknown", "10.0.0.1"),
    ],
)
def test_forms_that_proxies_write(header: str, client: str) -> None:
    assert client_address("10.0.0.1", header, PROXIES) == client


def test_one_client_cannot_count_as_many() -> None:
    assert counted_as("2001:db8::1") == counted_as("2001:db8::ffff:1") == "2001:db8::/64"
    assert counted_as(f"::ffff:{REAL}") == REAL
    assert counted_as("fe80::1%eth0") == "fe80::/64"
    assert counted_as("::1") == "::1"
    assert counted_as("x" * 50_000) == ""


def test_a_wrong_proxy_is_rejected() -> None:
    proxies = {"FLOWER_TRUSTED_PROXIES": "10.0.0.1, 10.1.0.0/16 2001:db8::/32"}
    assert len(Settings.from_environment(proxies).trusted_proxies) == 3
    for wrong in ("*", "balancer", "10.0.0.0/33", "10.0.0.5/8"):
        with pytest.raises(SystemExit, match="must be IP addresses and networks"):
            Settings.from_environment({"FLOWER_TRUSTED_PROXIES": wrong})


@pytest.mark.integration
def test_invented_methods_share_their_counters(lonely_api: Api) -> None:
    """The metrics' labels are a table of this kind, too."""
    before = lonely_api.client.get("/metrics").text
    for number in range(50):
        assert httpx.request(f"M{number}", f"{lonely_api.url}/health").status_code == 405
        assert httpx.request(f"M{number}", f"{lonely_api.url}/nowhere/{number}").status_code == 404
    after = lonely_api.client.get("/metrics").text
    assert len(after.splitlines()) < len(before.splitlines()) + 60
    assert set(re.findall(r'method="(\w+)"', after)) <= {*METHODS, "OTHER"}
