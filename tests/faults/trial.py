"""One random fault on one host: does the work stop, what does the doctor say, does its runbook repair it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.chaos.host import PROJECT, ChaosError, Host, command
from tests.faults.mutations import LISTING, SERVICES, Mutation, mutation

# Seconds within which a fault must show, and within which one that shows may still heal by itself.
SHOWS, HEALS = 12, 25
# Seconds for a command of ours: what takes longer hangs.
LONGEST = 240
WORK = """
key=$(cat /etc/typesafe/secrets/api/BACKEND_API_KEY | cut -d, -f1)
say() { curl --silent --max-time 5 --header "X-API-Key: $key" --header 'Content-Type: application/json' "$@"; }
task=$(say --data '{"data": {}}' http://127.0.0.1:8000/tasks/enqueue | grep -oP '"task_id":"\\K[^"]+') || exit 1
for _ in 1 2 3 4 5 6 7 8; do
  say http://127.0.0.1:8000/tasks/status/$task | grep -q '"SUCCESS"' && break; sleep 1
done
say http://127.0.0.1:8000/tasks/status/$task | grep -q '"SUCCESS"' || exit 1
head -1 /etc/typesafe-flower/FLOWER_BASIC_AUTH | sed 's/.*/user = "&"/' |
  curl --silent --fail --max-time 5 --config - --output /dev/null http://127.0.0.1:5555/flower/ || exit 1
echo works
"""


@dataclass
class Trial:
    """A fault and what became of it."""

    seed: int
    mutations: list[Mutation]
    restarted: bool
    broken: bool = False
    sentences: list[str] = field(default_factory=list)
    seconds: float = 0.0
    runbook: str = ""
    repaired: bool = False
    hung: str = ""

    @property
    def what(self) -> str:
        """Say what was changed."""
        then = "; then every service starts anew" if self.restarted else ""
        return "; ".join(each.what for each in self.mutations) + then

    def place(self) -> int:
        """Return which critical sentence or warning names a changed object, from 1 on; 0 when none does."""
        names = [name for each in self.mutations for name in each.names]
        for number, sentence in enumerate(self.sentences, 1):
            if any(re.search(rf"(?<![\w/]){re.escape(name)}(?!\w)", sentence) for name in names):
                return number
        return 0


def untouched(host: Host, image: str, inventory: Path) -> list[str]:
    """Return what the doctor finds critical about a host to which nothing was done."""
    said = play(inventory, start(host, image, inventory), host, "playbooks/diagnose/doctor.yml")
    return [sentence for sentence in findings(said) if sentence.startswith("CRITICAL")]


def findings(said: str) -> list[str]:
    """Return the doctor's sentences, in its order."""
    return re.findall(r"^\s*(?:- )?[\"']?((?:CRITICAL|WARNING) .*?)[\"',]*$", said, re.MULTILINE)


def works(host: Host) -> bool:
    """Tell whether a task goes all the way and Flower opens."""
    try:
        return host.run(WORK, check=False, seconds=60).endswith("works")
    except ChaosError:
        return False


def wait_until_works(host: Host, seconds: float) -> bool:
    """Tell whether the platform does its work within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := works(host)) and time.monotonic() < deadline:
        time.sleep(2)
    return found


def stops(host: Host) -> bool:
    """Tell whether the platform stops its work and does not begin again by itself."""
    time.sleep(SHOWS)
    return not wait_until_works(host, HEALS)


def run(host: Host, image: str, inventory: Path, seed: int, healthy: Path) -> Trial:
    """Start the host anew from its installed state, break it, ask the doctor, and do what it recommends."""
    chance = Random(seed)  # noqa: S311 - no secret
    port = start(host, image, inventory)
    files = sorted(json.loads(healthy.read_text())) if healthy.exists() else listed(host, healthy)
    drawn = [mutation(chance, files) for _ in range(2 if chance.random() < 0.3 else 1)]
    trial = Trial(seed, drawn, restarted=chance.random() < 0.5)
    for each in drawn:
        host.run(each.script, check=False)
    if trial.restarted:
        host.run(f"timeout 60 systemctl restart {' '.join(SERVICES)}", check=False, seconds=90)
    trial.broken = stops(host)
    if not trial.broken:
        return trial
    started = time.monotonic()
    doctor = play(inventory, port, host, "playbooks/diagnose/doctor.yml")
    trial.seconds = time.monotonic() - started
    trial.sentences = list(dict.fromkeys(findings(doctor)))
    trial.hung = "" if doctor else "the doctor"
    if page := next(iter(re.findall(r"docs/runbooks/([\w-]+)\.md", " ".join(trial.sentences[:1]))), ""):
        trial.runbook = runbook_of(page)
        said = play(inventory, port, host, trial.runbook, "-e", "confirm=yes")
        trial.hung = trial.hung or ("" if said else trial.runbook)
        trial.repaired = wait_until_works(host, 30)
    return trial


def start(host: Host, image: str, inventory: Path) -> str:
    """Start the host from its installed state; return its port for SSH."""
    command(PROJECT / "scripts/testhost.sh", "stop", host.name)
    port = command(PROJECT / "scripts/testhost.sh", "resume", host.name, image, "--cap-add", "NET_ADMIN", seconds=120)
    if not wait_until_works(host, 60):
        raise ChaosError(f"{host.name} does not work before anything is changed")
    # A host that starts from an image has another address than the one that is recorded there.
    parts = json.dumps({"remember_parts": ["network", "names", "files"]})
    play(inventory, port, host, "playbooks/site/record_state.yml", "-e", parts)
    return port


def listed(host: Host, keep: Path) -> list[tuple[str, str]]:
    """Return the files of a host that a fault may be about, and keep the list: each seed draws from the same."""
    names = host.run(
        f"({LISTING}) | sort -u | xargs -d '\\n' stat --format='%F|%n' 2>/dev/null", check=False
    ).splitlines()
    letters = {"directory": "d"}
    found = [(letters.get(kind, "f"), path) for kind, _, path in (name.partition("|") for name in names)]
    keep.write_text(json.dumps(found))
    return sorted(found)


def play(inventory: Path, port: str, host: Host, playbook: str, *options: str) -> str:
    """Run a playbook; return what it prints, nothing when it hangs."""
    words = ["ansible-playbook", f"--inventory={inventory}", f"--limit={host.name}", "-e", f"ansible_port={port}"]
    try:
        result = subprocess.run(
            [*words, *options, str(PROJECT / playbook)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired:
        return ""
    return result.stdout


def runbook_of(page: str) -> str:
    """Return the playbook that a page tells to run with confirm=yes, or site.yml where it names none."""
    text = (PROJECT / f"docs/runbooks/{page}.md").read_text()
    named = re.findall(r"ansible-playbook .*?(playbooks/runbooks/\w+\.yml).*confirm=yes", text)
    return named[0] if named else "site.yml"
