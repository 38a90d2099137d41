"""Which releases hosts have kept, and which one a rollback goes to."""

from __future__ import annotations

from typing import Any

from tests.support import load_plugin

releases = load_plugin("roles/stack/filter_plugins/stack_releases.py")

NEVER_LIVE = 315532800.0  # 1980
RELEASES = "/opt/typesafe/releases"


def host(name: str, live: str, incomplete: tuple[str, ...] = (), **kept: float) -> dict[str, Any]:
    """Return a host's variables; ``kept`` says when each release, other than the live one, was live last."""
    times = {f"{release}-3.11": moment for release, moment in {live: NEVER_LIVE, **kept}.items()}
    complete = [name for name in times if name.partition("-")[0] not in incomplete]
    return {
        "inventory_hostname": name,
        "rollback_live": {"stat": {"lnk_source": f"{RELEASES}/{live}-3.11"}},
        "rollback_complete": {"files": [{"path": f"{RELEASES}/{name}/.complete"} for name in complete]},
        "rollback_found": {"files": [{"path": f"{RELEASES}/{name}", "mtime": time} for name, time in times.items()]},
    }


def test_what_failed_on_a_later_host_is_not_the_release_before() -> None:
    hosts = [host("a", "new", broken=2e9, old=1.9e9), host("b", "new", broken=NEVER_LIVE, old=1.9e9)]
    assert releases.release_before(hosts) == "old"
    # It is gone there meanwhile.
    hosts = [host("a", "new", broken=2e9, old=1.9e9), host("b", "new", old=1.9e9)]
    assert releases.release_before(hosts) == "old"


def test_the_release_before_is_the_one_that_was_live_last() -> None:
    hosts = [host("a", "new", old=2e9, older=1.9e9), host("b", "new", old=2e9, older=1.9e9)]
    assert releases.release_before(hosts) == "old"
    assert releases.release_lacking(hosts, "old") == []
    assert releases.release_directory(hosts[0], "old") == f"{RELEASES}/old-3.11"
    assert releases.release_directory(hosts[0], "old-3.11") == f"{RELEASES}/old-3.11"


def test_a_release_that_was_never_live_is_not_gone_back_to() -> None:
    hosts = [host("a", "old", failed=NEVER_LIVE, older=1.9e9)]
    assert releases.release_before(hosts) == "older"
    assert releases.release_before([host("a", "old", failed=NEVER_LIVE)]) == ""
    assert releases.releases_kept(hosts) == [
        "a: old-3.11 is live",
        "a: older-3.11 was live until 2030-03-17 17:46 UTC",
        "a: failed-3.11 was never live",
    ]


def test_half_a_deployment_goes_back_to_what_the_others_still_run() -> None:
    assert releases.release_before([host("a", "new", old=2e9, older=1.9e9), host("b", "old", older=1.9e9)]) == "old"


def test_what_runs_is_told_by_release() -> None:
    hosts = [{"inventory_hostname": name, "roll_runs": run} for name, run in (("a", "new"), ("b", "old"), ("c", "new"))]
    assert releases.releases_running([*hosts, {"inventory_hostname": "d"}]) == (
        "a, c: new; b: old; d: what this run has not seen"
    )


def test_a_host_reaches_itself_where_it_listens_everywhere() -> None:
    assert releases.own_url({}, "api", 8000) == "http://127.0.0.1:8000"
    assert releases.own_url({"api_bind": "[::]", "api_port": 1}, "api", 8000) == "http://[::1]:1"
    assert releases.own_url({"flower_bind": "10.0.0.1"}, "flower", 5555) == "http://10.0.0.1:5555"


def test_a_host_that_has_it_not_or_half_is_named() -> None:
    hosts = [host("a", "new", old=2e9), host("b", "new"), host("c", "new", incomplete=("old",), old=2e9)]
    assert releases.release_lacking(hosts, "old") == ["b", "c"]
    assert releases.release_lacking(hosts, "") == ["a", "b", "c"]
