"""What the filters of the monitoring role make: password hashes that do not change, and addresses of targets."""

import bcrypt

from tests.support import load_plugin

hashes, targets = (
    load_plugin("roles/monitoring/filter_plugins/monitoring.py"),
    load_plugin("roles/stack/filter_plugins/stack_monitoring.py"),
)


def test_a_hash_lets_the_password_in_and_stays_the_same() -> None:
    first = hashes.bcrypt_hash("correct horse battery", "host1")
    assert bcrypt.checkpw(b"correct horse battery", first.encode())
    assert not bcrypt.checkpw(b"another", first.encode())
    assert hashes.bcrypt_hash("correct horse battery", "host1") == first
    assert hashes.bcrypt_hash("correct horse battery", "host2") != first


def test_the_inventorys_address_goes_before_the_default_routes() -> None:
    facts = {"ansible_facts": {"default_ipv4": {"address": "10.0.0.1"}}}
    assert targets.monitoring_address({"private_address": "10.9.9.9", **facts}) == "10.9.9.9"
    assert targets.monitoring_address(facts) == "10.0.0.1"
    assert targets.monitoring_address({}) == ""


def test_each_instance_is_asked_through_its_hosts_exporter() -> None:
    found = targets.monitoring_redis_targets(["a"], {"a": "fd00::1"}, 9121, {"main": 6379, "broker": 6380}, "rediss")
    assert found == [
        {"host": "a", "address": "[fd00::1]:9121", "instance": "main", "target": "rediss://127.0.0.1:6379"},
        {"host": "a", "address": "[fd00::1]:9121", "instance": "broker", "target": "rediss://127.0.0.1:6380"},
    ]
