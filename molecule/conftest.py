"""What the tests of all scenarios share: they run on the controller and look at the hosts over SSH, as root."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from testinfra.host import Host
from xdist.scheduler import LoadScopeScheduling

from celery_durable.testing import wait_for
from tests.api_client import ApiClient

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
EPHEMERAL = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
os.environ["ANSIBLE_FORCE_COLOR"] = "0"  # tests read what it prints; Molecule asks for colours in a terminal


def pytest_configure(config: pytest.Config) -> None:
    """Declare our markers."""
    config.addinivalue_line("markers", "hosts(*names): run the test on these hosts alone")
    config.addinivalue_line("markers", "attack(stopped_by): an attack, in the table of make security")
    config.addinivalue_line("markers", "long: part of `make nightly`, left out by `make test`")
    config.addinivalue_line("markers", "once(name): `make test` runs it on this host alone, `make nightly` on all")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out tests as their markers say."""
    short = "SHORT_RUN" in os.environ

    def is_chosen(item: pytest.Item) -> bool:
        hosts = [*item.iter_markers("hosts"), *(item.iter_markers("once") if short else [])]
        return all(any(name in item.name for name in mark.args) for mark in hosts) and not (
            short and item.get_closest_marker("long")
        )

    items[:] = [item for item in items if is_chosen(item)]


class HostScheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """With pytest's option -n: tests of one host run one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        names = yaml.safe_load((SCENARIO / "molecule.yml").read_text())["platforms"]
        return next((str(host["name"]) for host in names if f"//{host['name']}" in nodeid), "")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> HostScheduling:
    """Choose it."""
    return HostScheduling(config, log)


# Begins a command: curl that sends the host's own key. The key comes through a pipe, because sudo logs each command.
CURL = "grep -o '[^, ]*' /etc/typesafe/secrets/api/BACKEND_API_KEY | sed 's/^/X-API-Key: /;q' | curl -sS -H @-"


class _Curl(httpx.BaseTransport):
    """Requests that a host sends by itself, with the key that lies there; status 0 when nobody answers."""

    def __init__(self, host: Host) -> None:
        """Send from ``host``."""
        self.host = host

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        command = f"{CURL} --max-time 10 -w '\\n%{{http_code}}' -X {request.method} '{request.url}'"
        if body := request.read().decode():
            command += f" -H 'Content-Type: application/json' -d {shlex.quote(body)}"
        answer, _, status = self.host.run(command).stdout.rpartition("\n")
        return httpx.Response(int(status or 0), text=answer)


class Api(ApiClient):
    """The API of one host, spoken to from that host."""

    url = "http://127.0.0.1:8000"

    def __init__(self, host: Host) -> None:
        """Speak from ``host``."""
        super().__init__(self.url, transport=_Curl(host))


@pytest.fixture
def api(host: Host) -> Api:
    """The API of the host under test."""
    return Api(host)


@pytest.fixture(scope="session")
def secret() -> Callable[[str], str]:
    """Read a secret that this scenario's run has made."""
    return lambda name: (EPHEMERAL / "secrets" / name).read_text().split()[0]


class VaultInventory:
    """A copy of the scenario's inventory as an installation has it: its secrets lie in a vault file."""

    USERS = ("worker", "api", "flower", "exporter", "operator", "replication", "sentinel")
    SINGLE = (
        *("redis_password", "sentinel_password", "flower_password", "monitoring_password", "backend_api_key"),
        *("metrics_api_key", "task_signing_key", "control_signing_key"),
    )
    PASSWORD = PROJECT / "scripts/vault-password.sh"

    def __init__(self, directory: Path) -> None:
        """Name its place."""
        self.directory = directory
        self.secrets = EPHEMERAL / "secrets"
        self.file = directory / "group_vars/all/vault.yml"

    def create(self) -> None:
        """Write it."""
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.copytree(EPHEMERAL / "inventory", self.directory)
        shared = self.directory / "group_vars/all"
        content = shared.read_text()
        shared.unlink()
        shared.mkdir()
        (shared / "main.yml").write_text(content)
        users = {user: self.secret(f"redis_{user}_password") for user in self.USERS}
        present = {name: self.secret(name) for name in self.SINGLE} | {"redis_user_passwords": users}
        self._vault("encrypt", f"--output={self.file}", given=yaml.safe_dump(present))

    def secret(self, name: str) -> str:
        """Return a secret that the scenario has made, or makes now: not every scenario has used each."""
        file = self.secrets / name
        if not file.exists():
            file.write_text(secrets.token_hex(16) + "\n")
        return file.read_text().split()[0]

    def read(self) -> dict[str, Any]:
        """Return what the vault file says now."""
        content: dict[str, Any] = yaml.safe_load(self._vault("view", str(self.file)))
        return content

    def give_back(self) -> None:
        """Give the scenario's own inventory the secrets of this one, which a playbook may have replaced."""
        new = self.read()
        for name in self.SINGLE:
            (self.secrets / name).write_text(new[name] + "\n")
        for user in self.USERS:
            (self.secrets / f"redis_{user}_password").write_text(new["redis_user_passwords"][user] + "\n")

    def playbook(self, *arguments: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
        """Run ``ansible-playbook`` with it; standard error is in ``stdout``, too."""
        return subprocess.run(
            ["ansible-playbook", f"--inventory={self.directory}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
            env=os.environ | {"ANSIBLE_VAULT_PASSWORD_FILE": str(self.PASSWORD)},
        )

    def _vault(self, *arguments: str, given: str = "") -> str:
        command = ["ansible-vault", *arguments, f"--vault-password-file={self.PASSWORD}"]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def name(host: Host) -> str:
    """The host's name in the inventory, which is its container's name too."""
    return str(host.backend.hostname)


@pytest.fixture
def reboot(name: str) -> Callable[[], None]:
    """Shut the host down in order and boot it again."""

    def run() -> None:
        subprocess.run([PROJECT / "scripts/testhost.sh", "reboot", name], check=True, timeout=240)

    return run


@pytest.fixture
def converge(name: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the scenario's converge.yml again on the host under test, with other options and values."""

    def run(*options: str, **variables: object) -> subprocess.CompletedProcess[str]:
        command = ["ansible-playbook", f"--inventory={EPHEMERAL / 'inventory'}", f"--limit={name}", *options]
        command += [f"--extra-vars={json.dumps(variables)}", str(SCENARIO / "converge.yml")]
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=600
        )

    return run


class Process:
    """The main process of a systemd unit, as /proc tells it."""

    def __init__(self, host: Host, unit: str) -> None:
        """Look up the main process of ``unit``; fail when none runs."""
        self.host = host
        self.unit = unit if unit.endswith(".service") else f"{unit}.service"
        self.pid = int(host.check_output(f"systemctl show --value --property MainPID {unit}"))
        assert self.pid > 0, f"{unit} does not run"
        lines = host.check_output(f"cat /proc/{self.pid}/status").splitlines()
        self.user = host.check_output(f"stat -c %U /proc/{self.pid}")
        self.status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def reads(self, path: str) -> bool:
        """Tell whether the process's own user can read ``path`` in the process's own view of the file system."""
        return bool(self.host.run(f"nsenter --target {self.pid} --mount sudo -u {self.user} test -r {path}").succeeded)

    def assert_sandboxed(self, user: str) -> None:
        """Check that the unit's sandbox is in force, not only written down."""
        mounts = self.host.check_output(f"cat /proc/{self.pid}/mountinfo").splitlines()
        options = {line.split()[4]: line.split()[5].split(",") for line in mounts}
        assert self.user == user
        assert self.status["NoNewPrivs"] == "1"
        assert self.status["Seccomp"] == "2"
        assert int(self.status["CapEff"], 16) == 0
        assert int(self.status["CapBnd"], 16) == 0
        assert "ro" in options["/"]
        assert self.host.run(f"nsenter --target {self.pid} --mount test -w /proc/sys/kernel/core_pattern").failed
        assert "/tmp" in options, "no private /tmp"  # noqa: S108 - a mount point, not a file

    def assert_closed(self) -> None:
        """Check what the application's units have on top: files, and limits as process and kernel know them."""
        mounts = self.host.check_output(f"cat /proc/{self.pid}/mountinfo").splitlines()
        options = {line.split()[4]: line.split()[5].split(",") for line in mounts}
        for place in ("/tmp", "/var/tmp", "/dev/shm"):  # noqa: S108 - mount points, not files
            assert "noexec" in options[place], place
        for path in ("/etc/typesafe/secrets", "/srv", "/root", "/etc/redis/redis.conf"):
            assert not self.reads(path), path
        assert self.host.check_output(f"nsenter --target {self.pid} --mount ls /run/credentials") == self.unit
        limits = self.host.check_output(f"cat /proc/{self.pid}/limits")
        assert re.search(r"Max core file size +0 +0 ", limits)
        assert re.search(r"Max open files +16384 +16384 ", limits)
        assert self.limit("MemoryMax") < 2**63
        assert self.limit("MemorySwapMax") == 0
        assert self.limit("TasksMax") < 1000
        for file, name in (("memory.max", "MemoryMax"), ("pids.max", "TasksMax")):
            in_force = self.cgroup(file)
            # The kernel counts memory in pages.
            assert in_force is None or int(in_force) in range(self.limit(name) - 4095, self.limit(name) + 1)

    def limit(self, name: str) -> int:
        """Return a limit as systemd knows it; one that is not set is 2**64."""
        value = self.host.check_output(f"systemctl show --value --property {name} {self.unit}")
        return 2**64 if value == "infinity" else int(value)

    def cgroup(self, file: str) -> str | None:
        """Return a file of the unit's control group; None where the machine gives its containers no such controller."""
        group = self.host.check_output(f"systemctl show --value --property ControlGroup {self.unit}")
        read = self.host.run(f"cat /sys/fs/cgroup{group}/{file}")
        return str(read.stdout).strip() if read.succeeded else None


@pytest.fixture
def process(host: Host) -> Callable[[str], Process]:
    """Look at the main process of a unit."""
    return lambda unit: Process(host, unit)


def security_exposure(host: Host, unit: str) -> float:
    """Return the exposure that systemd-analyze computes: 0 is closed, 10 is wide open."""
    report = host.check_output(f"systemd-analyze security --no-pager {unit}")
    return float(report.splitlines()[-1].split(":")[1].split()[0])


PROMETHEUS = "http://127.0.0.1:9090"
ALERTMANAGER = "http://127.0.0.1:9093"
# Begins a command: curl with user and password, which come through a pipe, because sudo logs each command.
PROMETHEUS_LOGIN = "sed 's/^/user = admin:/' /etc/prometheus/secrets/password | curl -sS -K -"


def ask(host: Host, path: str) -> Any:
    """Return what Prometheus' API says."""
    answer = json.loads(host.check_output(f"{PROMETHEUS_LOGIN} '{PROMETHEUS}/api/v1/{path}'"))
    assert answer["status"] == "success", f"{path}: {answer['error']}"
    return answer["data"]


def assert_alerts_fire(name: str) -> None:
    """Run the scenario's alerts_test.yml with Prometheus' own tool, against the rules that host ``name`` has."""
    command = [str(PROJECT / "scripts/podman.sh"), "exec", "--interactive", name, "sh", "-c"]
    command += ["cat >/run/alerts_test.yml && promtool test rules /run/alerts_test.yml"]
    tests = (SCENARIO / "tests/alerts_test.yml").read_text()
    run = subprocess.run(command, input=tests, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "SUCCESS" in run.stdout


def firing(host: Host) -> set[str]:
    """Return the names of the alerts that Alertmanager shows."""
    alerts = json.loads(host.check_output(f"{PROMETHEUS_LOGIN} '{ALERTMANAGER}/api/v2/alerts?active=true'"))
    return {alert["labels"]["alertname"] for alert in alerts}


def metrics(expression: str) -> set[str]:
    """Return the names of an expression's metrics: what begins like ours, or like the exporters'."""
    return set(re.findall(r"\b(?:celery|http|node|redis)_\w+|\bup\b", re.sub(r'"[^"]*"', "", expression)))


def assert_seen(host: Host, names: set[str]) -> None:
    """Check that Prometheus knows these metrics, after one task has run and Redis has refused something."""
    api = Api(host)
    api.wait(api.enqueue())
    host.run("redis-cli ping")  # without a password: an error for Redis to count

    def missing() -> set[str]:
        return names - set(ask(host, "label/__name__/values"))

    try:
        wait_for(lambda: not missing(), "all metrics", 60)
    finally:
        print("missing:", missing())  # noqa: T201 - what the failure is about


def runbook_pages() -> dict[str, list[Path]]:
    """Return the pages of the alerts of each group of rules."""
    rules = (PROJECT / "roles/monitoring/templates/alerts.yml.j2").read_text()
    _, *parts = re.split(r"^  - name: (\w+)$", rules, flags=re.MULTILINE)
    return {
        group: [PROJECT / f"docs/runbooks/{alert}.md" for alert in re.findall(r"- alert: (\w+)", text)]
        for group, text in zip(parts[::2], parts[1::2], strict=True)
    }


def diagnose_by_page(page: Path, host: str) -> None:
    """Run the commands of a page's section Diagnose on a host."""
    commands = re.findall(
        r"```bash\n(.*?)```", page.read_text().partition("## Diagnose")[2].partition("## Repair")[0], re.DOTALL
    )
    run = [str(PROJECT / "scripts/podman.sh"), "exec", "--interactive", host, "bash", "-e"]
    seen = subprocess.run(run, input="".join(commands), capture_output=True, text=True, check=False, timeout=60)
    assert commands
    assert seen.returncode == 0, seen.stdout + seen.stderr
