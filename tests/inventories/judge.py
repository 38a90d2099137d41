"""Runs inventories through preflight and templates, and judges what came of each without a host.

An inventory is either rejected by one sentence that names one of its variables, or everything renders, and the programs
that read the files take them.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import secrets
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kombu.utils.url
import pytest
import redis
import yaml
from dotenv import dotenv_values

from app.agents.config import celery_config
from app.settings import Settings
from celery_durable.address import RedisAddress
from celery_durable.testing import free_port
from tests.support import REPOSITORY, Program, ansible_report, load_plugin

HERE = Path(__file__).parent
sentinel_config = load_plugin("roles/redis_sentinel/library/redis_sentinel_config.py")
REDIS_USERS = ("worker", "api", "flower", "exporter", "operator", "replication", "sentinel")
SECRETS = (
    *("redis_password", "sentinel_password", "flower_password", "backend_api_key", "task_signing_key"),
    *("control_signing_key", "monitoring_password", "metrics_api_key"),
)
GOOD: dict[str, Any] = {
    **{name: secrets.token_urlsafe(48) for name in SECRETS},
    "redis_user_passwords": {user: secrets.token_urlsafe(24) for user in REDIS_USERS},
}
AUTHORITY = {
    "load_balancer_certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
    "load_balancer_key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
}
# No program is installed here, and these tests need no host.
EXPECTED_OF_SYSTEMD = re.compile(
    r"is not executable: No such file|Failed to prepare filename|man .* command failed|not found\.$"
)


@dataclass
class Outcome:
    """What became of one inventory."""

    errors: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # while rendering
    files: dict[str, str] = field(default_factory=dict)


def run(inventories: dict[str, dict[str, Any]], directory: Path, *, cluster: bool) -> dict[str, Outcome]:
    """Return what preflight and templates make of each; with ``cluster`` each balances and monitors, too."""
    hosts: dict[str, Any] = {}
    for number, (name, variables) in enumerate(inventories.items(), 1):
        address = f"10.1.{number // 250}.{number % 250 + 1}"
        place = {"private_address": address, "api_bind": address, "load_balancer_bind": [address]}
        # Each is monitored by the others, too.
        reach = {**place, "private_network": True} if cluster else {}
        hosts[name] = {**GOOD, "ansible_become": False, **reach, **(AUTHORITY if cluster else {}), **variables}
    groups = ("redis", "workers", "api", "flower", *(("monitoring", "balancers") if cluster else ()))
    children: dict[str, Any] = {group: {"hosts": {name: {} for name in hosts}} for group in groups}
    return outcomes({"all": {"hosts": hosts, "children": children}}, directory)


def run_replicated(variables: dict[str, Any], directory: Path, *, alone: bool) -> dict[str, Outcome]:
    """Return what becomes of each of three hosts with replicas, sentinels and two balancers.

    The variables are those of all hosts, with ``alone`` those of one.
    """
    own = "{{ private_address }}"
    shared = {
        **GOOD,
        "ansible_become": False,
        "private_network": True,
        "redis_bind": ["127.0.0.1", own],
        "api_bind": own,
        "load_balancer_bind": [own],
        "load_balancer_virtual_ip": "10.2.0.10/24",
        **AUTHORITY,
        **({} if alone else variables),
    }
    hosts = {name: {"private_address": f"10.2.0.{number}"} for number, name in enumerate(("a", "b", "c"), 1)}
    if alone:
        hosts["b"] |= variables
    members = {
        **dict.fromkeys(("redis", "sentinels", "workers", "api"), ("a", "b", "c")),
        "flower": ("a",),
        "balancers": ("b", "c"),
        "monitoring": ("a",),
    }
    children = {group: {"hosts": dict.fromkeys(names)} for group, names in members.items()}
    return outcomes({"all": {"hosts": hosts, "vars": shared, "children": children}}, directory)


def outcomes(inventory: dict[str, Any], directory: Path) -> dict[str, Outcome]:
    """Run preflight and templates over an inventory; return what became of each host."""
    file = directory / "hosts.json"
    file.write_text(json.dumps(inventory))
    report = ansible_report(f"--inventory={file}", HERE / "preflight_and_render.yml")
    outcomes = {name: Outcome() for name in inventory["all"]["hosts"]}
    for play in report["plays"]:
        for task in play["tasks"]:
            rendering = task["task"]["name"].startswith("Render")
            for name, result in task["hosts"].items():
                items = result.get("results", [result])
                if result.get("failed") or result.get("unreachable"):
                    failed = [str(item.get("msg")) for item in items if item.get("failed")] or [str(result.get("msg"))]
                    (outcomes[name].broken if rendering else outcomes[name].errors).extend(failed)
                elif rendering:
                    outcomes[name].files |= {
                        item["msg"]["file"]: item["msg"]["text"] for item in items if "msg" in item
                    }
    return outcomes


def judge(variables: dict[str, Any], outcome: Outcome, directory: Path) -> list[str]:
    """Return what is wrong with one outcome, empty when it is as it must be."""
    if outcome.errors:
        return judge_error(variables, outcome.errors)
    if outcome.broken:
        return [f"renders with an error: {outcome.broken[0]}"]
    if "secrets.json" not in outcome.files:
        return ["was neither rejected nor rendered"]
    return [*judge_files(variables, outcome.files, directory)]


def judge_error(variables: dict[str, Any], errors: list[str]) -> list[str]:
    """Return what is wrong with an error: it is one sentence of at most a few words that names a variable."""
    if len(errors) != 1:
        return [f"has {len(errors)} errors: {errors}"]
    text = errors[0].replace("\n", " ")
    if not any(name in text for name in variables):
        return [f"is rejected without naming a variable: {text}"]
    # Values may hold anything; a second sentence begins with a capital letter or with a variable's name again.
    if re.search(r"(Traceback|Finalization|Error while|is undefined|has no attribute|templating)", text):
        return [f"is rejected by an accident: {text}"]
    if len(re.findall(r"\b(?:but|and) (?:it )?must be\b", text)) > 1:
        return [f"is rejected by more than one sentence: {text}"]
    return []


def judge_files(variables: dict[str, Any], files: dict[str, str], directory: Path) -> list[str]:
    """Return what the programs that read the files reject."""
    wrong: list[str] = []
    for name, text in files.items():
        if re.search(r"\bNone\b|Undefined", text) and name.endswith((".service", ".conf", ".env", ".nft")):
            wrong.append(f"{name} holds a None")
        if name.startswith("redis-"):
            wrong += redis_errors(text)
        elif name == "sentinel.json":
            wrong += sentinel_errors(json.loads(text))
        elif name.endswith(".yml"):
            yaml.safe_load(text)
    wrong += settings_errors(variables, files, directory)
    wrong += systemd_errors(files, directory)
    wrong += supervisor_errors(files["supervisor.conf"])
    wrong += nft_errors(files["rules.nft"])
    return wrong


def sentinel_errors(told: dict[str, Any]) -> list[str]:
    """Start a Sentinel with what the role's module would write."""
    told["options"] |= {"port": free_port(), "bind": "127.0.0.1", "daemonize": "no"}
    moved = ("dir", "pidfile", "unixsocket", "unixsocketperm")
    told["options"] = {
        name: value for name, value in told["options"].items() if name not in moved and not name.startswith("tls-")
    }
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "sentinel.conf"
        sentinel_config.save(file, sentinel_config.wanted([], told["options"], told["primaries"], told["quorum"]))
        program = Program(["redis-server", str(file), "--sentinel", "--dir", work], Path(work) / "log")
        try:
            program.wait_for_output("monitor master")
        except AssertionError as error:
            return [f"redis-sentinel rejects its configuration: {error}"]
        finally:
            program.stop()
    return []


TAKEN_BY_REDIS: dict[str, list[str]] = {}


def redis_errors(text: str) -> list[str]:
    """Start a Redis with the configuration, as redis-check-config does on a host; each one once."""
    key = hashlib.sha256(text.encode()).hexdigest()
    if key not in TAKEN_BY_REDIS:
        with tempfile.TemporaryDirectory() as work:
            socket = f"{work}/socket"
            own = ["--port", "0", "--tls-port", "0", "--unixsocket", socket, "--pidfile", f"{work}/pid", "--dir", work]
            own += ["--logfile", "", "--save", "", "--appendonly", "no", "--daemonize", "no", "--supervised", "no"]
            program = subprocess.Popen(
                ["redis-server", "-", *own],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert program.stdin
            assert program.stdout
            program.stdin.write(re.sub(r"(?m)^(dir|unixsocket|pidfile) .*$", "", text))
            program.stdin.close()
            said = []
            for line in program.stdout:
                said.append(line)
                if "eady to accept connections" in line or "server is now ready" in line:
                    said = []
                    break
            program.kill()
            program.wait()
            TAKEN_BY_REDIS[key] = [f"redis-server rejects its configuration: {''.join(said[-5:])}"] if said else []
    return TAKEN_BY_REDIS[key]


def settings_errors(variables: dict[str, Any], files: dict[str, str], directory: Path) -> list[str]:
    """Read settings and secrets as the services do."""
    wrong: list[str] = []
    env_file = directory / "backend.env"
    env_file.write_text(files["backend.env"])
    kept = {"app_environment": "ENVIRONMENT"}
    for name, variable in kept.items():
        if name in variables and dotenv_values(env_file).get(variable) != str(variables[name]):
            wrong.append(f"the settings file turns {name} into {dotenv_values(env_file).get(variable)!r}")
    for service, told in json.loads(files["secrets.json"]).items():
        folder = directory / f"secrets-{service}"
        folder.mkdir(exist_ok=True)
        for name, value in told["secrets"].items():
            (folder / name).write_text(value)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SECRETS_DIRECTORY", str(folder))
            try:
                settings = Settings(_env_file=str(env_file))
            except ValueError as error:
                wrong.append(f"app.settings rejects what the {service} is told: {error}")
                continue
        celery_config(settings)
        for url in (settings.redis_url, settings.celery_broker_url, settings.celery_result_backend):
            wrong += url_errors(url.get_secret_value(), service)
    return wrong


def url_errors(url: str, user: str) -> list[str]:
    """Take a URL apart with all three parsers that read it; of sentinels each part, which redis-py never sees."""
    try:
        ours = RedisAddress.parse(url)
        if url.startswith("sentinel"):
            parts = [kombu.utils.url.url_to_parts(part) for part in url.split(";")]
            same = [(part.hostname, part.port) for part in parts] == list(ours.servers)
            return [] if same else [f"a URL of {user} is read as {ours.servers} and {parts}"]
        theirs = kombu.utils.url.url_to_parts(url)
        connection = redis.ConnectionPool.from_url(url).connection_kwargs
    except ValueError as error:
        return [f"a URL of {user} is none: {error}"]
    hosts = {ours.servers[0][0], theirs.hostname, connection["host"]}
    ports = {ours.servers[0][1], theirs.port, connection["port"]}
    return [] if len(hosts) == len(ports) == 1 else [f"a URL of {user} is read as {hosts} and {ports}"]


TAKEN_BY_SYSTEMD: dict[str, list[str]] = {}


def systemd_errors(files: dict[str, str], directory: Path) -> list[str]:
    """Let systemd-analyze verify all units together; each set once."""
    units = {name: text for name, text in files.items() if name.endswith((".service", ".socket"))}
    key = hashlib.sha256(json.dumps(units, sort_keys=True).encode()).hexdigest()
    if key not in TAKEN_BY_SYSTEMD:
        for name, text in units.items():
            (directory / name).write_text(text)
        result = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *(str(directory / name) for name in units)],
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "SYSTEMD_UNIT_PATH": f"{directory}:/usr/lib/systemd/system",
                "SYSTEMD_LOG_LEVEL": "warning",
            },
        )
        lines = [
            line
            for line in result.stderr.splitlines()
            if str(directory) in line or "typesafe" in line or "Unit " in line
        ]
        TAKEN_BY_SYSTEMD[key] = [f"systemd: {line}" for line in lines if not EXPECTED_OF_SYSTEMD.search(line)]
    return TAKEN_BY_SYSTEMD[key]


def supervisor_errors(text: str) -> list[str]:
    """Read supervisor's file as it does, with its own expansion of %(...)s."""
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    try:
        parser.read_string(text)
        for section in parser.sections():
            for name, value in parser.items(section):
                value % {"host_node_name": "host", "program_name": section, "process_num": 0, "group_name": section}
                assert value or name == "x", name
    except (configparser.Error, ValueError, TypeError, KeyError) as error:
        return [f"supervisor rejects its file: {error}"]
    return []


TAKEN_BY_NFT: dict[str, list[str]] = {}


def nft_errors(text: str) -> list[str]:
    """Let nft check the rules; each set once."""
    if text not in TAKEN_BY_NFT:
        result = subprocess.run(
            ["nft", "--check", "--file", "-"], input=text, capture_output=True, text=True, check=False
        )
        TAKEN_BY_NFT[text] = [] if result.returncode == 0 else [f"nft rejects its rules: {result.stderr[:300]}"]
    return TAKEN_BY_NFT[text]


__all__ = ["REPOSITORY", "Outcome", "judge", "run", "run_replicated"]
