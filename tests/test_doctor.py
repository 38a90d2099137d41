"""What the doctor makes of what it found: causes before what follows from them."""

import json
from typing import Any

from tests.support import REPOSITORY, load_plugin

doctor = load_plugin("roles/stack/filter_plugins/stack_doctor.py")


def host(name: str, *findings: tuple[int, str, str]) -> dict[str, Any]:
    """Return a host's variables after it was examined."""
    found = [{"severity": severity, "what": what, "runbook": runbook} for severity, what, runbook in findings]
    return {"inventory_hostname": name, "doctor_examined": {"stdout": json.dumps(found)}}


def test_nothing_is_nothing() -> None:
    assert doctor.doctor_findings([host("a"), host("b")]) == []


def test_the_cause_comes_first() -> None:
    hosts = [
        host("api", (1, "no worker is alive", "NoWorkers"), (1, "no broker", "BrokerUnreachable")),
        host(
            "redis",
            (2, "an update waits", ""),
            (1, "redis-server@broker is failed", "RedisDown"),
            (1, "full", "DiskFilling"),
        ),
    ]
    sentences = doctor.doctor_sentences(doctor.doctor_findings(hosts))
    assert sentences == [
        "CRITICAL redis: full -> docs/runbooks/DiskFilling.md",
        "CRITICAL redis: redis-server@broker is failed -> docs/runbooks/RedisDown.md",
        "CRITICAL api: no broker -> docs/runbooks/BrokerUnreachable.md",
        "CRITICAL api: no worker is alive -> docs/runbooks/NoWorkers.md",
        "warning redis: an update waits",
    ]


def test_a_silent_host_goes_before_all() -> None:
    hosts = [
        host("a", (1, "full", "DiskFilling")),
        {"inventory_hostname": "b", "doctor_examined": {"unreachable": True}},
    ]
    assert [finding["host"] for finding in doctor.doctor_findings(hosts)] == ["b", "a"]


def test_every_page_that_it_names_exists() -> None:
    pages = {page.stem for page in (REPOSITORY / "docs/runbooks").glob("*.md")}
    assert set(doctor.CAUSES) <= pages
