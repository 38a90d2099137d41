"""The status page, with a real Redis, worker and API behind it, and a real browser in front of it."""

import base64
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery

from celery_durable.entries import HEARD
from celery_durable.metrics import FAILURES, FAILURES_KEPT, MINUTE, MINUTE_KEPT, WorkerMetrics
from celery_durable.testing import RedisServer, wait_for
from durable_console.web.alerts import GROUP_KEPT, MAX_GROUPS
from durable_console.web.prometheus import SNAPSHOT_SECONDS
from durable_console.web.status.parts import SILENT_SECONDS
from tests.support import APPLICATIONS, Api, Program, start_worker

pytestmark = pytest.mark.integration

SECRET = "key-of-a-provider-0123456789"  # noqa: S105 - to be hidden
EVIL = "<script>alert('x')</script>\"><img src=//evil.example/x>"
PHONE, DESKTOP = 390, 1100
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
DARK = "--blink-settings=preferredColorScheme=0"
# What the page looks like to a reader: its width, what it has asked for, and the contrast of each text.
MEASURE = """
<script>
const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b)
const rgb = color => color.match(/[\\d.]+/g).map(Number)
const ground = e => {
  for (; e; e = e.parentElement) {
    const color = rgb(getComputedStyle(e).backgroundColor)
    if (color[3] !== 0) return color
  }
  return null
}
const texts = []
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement
  if (!walker.currentNode.data.trim() || element.closest('svg, script')) continue
  const [a, b] = [light(rgb(getComputedStyle(element).color)), light(ground(element))]
  texts.push([walker.currentNode.data.trim(), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)])
}
document.title = JSON.stringify({
  width: document.documentElement.scrollWidth, inner: innerWidth, dark: light(ground(document.body)) < 0.2,
  asked: performance.getEntriesByType('resource').map(entry => entry.name), texts,
})
</script>
"""


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Redis of these tests alone: they count."""
    server = RedisServer(tmp_path_factory.mktemp("status") / "redis")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def env(redis: RedisServer) -> dict[str, str]:
    """Two workers are wanted, and a provider's key is to be hidden."""
    return {**redis.environment(0, 1), "WORKERS_EXPECTED": "2", "GEMINI_API_KEY": SECRET}


@pytest.fixture(scope="module")
def api(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API of these tests alone."""
    api = Api(tmp_path_factory.mktemp("status") / "api.log", env)
    yield api
    api.stop()


@pytest.fixture
def redis_away(api: Api, redis: RedisServer) -> Iterator[None]:
    """Redis answers no more; it is back, and the API knows, when the test has ended."""
    redis.hang()
    yield
    redis.program.process.send_signal(signal.SIGCONT)
    wait_for(lambda: "Redis answers." in look(api), seconds=3 * SNAPSHOT_SECONDS)


def look(api: Api) -> str:
    """Return what a person reads: the page's text without its tags."""
    answer = api.get("/status")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return words(answer.text)


def words(page: str) -> str:
    """Return the text of a page, each run of white space as one space."""
    text = re.sub(r"<(style|title)>.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())


def wait_for_text(api: Api, *expected: str, timeout: float = 3 * SNAPSHOT_SECONDS) -> str:
    """Look until the page says all of this."""
    return wait_for(
        lambda: ((text := look(api)) and all(part in text for part in expected) and text) or "", seconds=timeout
    )


def tell(api: Api, name: str, *alerts: dict[str, Any], **labels: str) -> httpx.Response:
    """Tell of a group of alerts as Alertmanager does."""
    notification = {
        "version": "4",
        "groupKey": f'{{}}/{{}}:{{alertname="{name}", host="{labels.get("host", "")}"}}',
        "status": "firing",
        "receiver": "status page",
        "truncatedAlerts": 0,
        "alerts": [
            {
                "status": "firing",
                "labels": {"alertname": name, **labels},
                "annotations": {"summary": f"{name} is what it says.", "runbook": f"docs/runbooks/{name}.md"},
                "startsAt": "2026-01-01T12:00:00.123Z",
                "endsAt": "0001-01-01T00:00:00Z",
                "fingerprint": "0123456789abcdef",
                **alert,
            }
            for alert in alerts
        ],
    }
    login = {"Authorization": f"Bearer {api.key}"}
    return httpx.post(f"{api.url}/status/alerts", json=notification, headers=login)


def test_a_browser_is_asked_for_the_key(api: Api) -> None:
    rejected = httpx.get(f"{api.url}/status")
    assert rejected.status_code == 401
    assert rejected.headers["WWW-Authenticate"].startswith("Basic realm=")
    assert httpx.get(f"{api.url}/status", auth=("anybody", "wrong")).status_code == 401
    for login in ("Basic", "Basic %", "Basic " + base64.b64encode(b"\xff:\xff").decode()):
        assert httpx.get(f"{api.url}/status", headers={"Authorization": login}).status_code == 401
    assert httpx.get(f"{api.url}/status", auth=("anybody", api.key)).status_code == 200
    assert httpx.get(f"{api.url}/status", headers={"X-API-Key": api.key}).status_code == 200
    assert httpx.get(f"{api.url}/status", headers={"Authorization": f"Bearer {api.key}"}).status_code == 200


def test_a_password_is_for_the_page_alone(api: Api) -> None:
    """A browser sends it to whatever a foreign page makes it post to."""
    for path in ("/metrics", "/tasks/status/0"):
        rejected = httpx.get(f"{api.url}{path}", auth=("anybody", api.key))
        assert (rejected.status_code, rejected.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert httpx.post(f"{api.url}/status/alerts", auth=("anybody", api.key), json={}).status_code == 401


def test_before_there_is_anything(api: Api) -> None:
    text = look(api)
    assert "Workers broken 0 of 2 alive. Tasks wait." in text
    assert "Alerting not heard" in text
    assert "None has reported within a day." in text


@pytest.fixture
def worker(env: dict[str, str], tmp_path: Path) -> Iterator[Program]:
    """One of the two workers."""
    program = start_worker(tmp_path / "worker.log", env, app="faulty_worker", name="one")
    yield program
    program.stop(signal.SIGKILL)


@pytest.mark.usefixtures("worker")
def test_tasks_and_failures(api: Api, env: dict[str, str], redis: RedisServer) -> None:
    code = f"""
from faulty_worker import *
for _ in range(3): sleeping.delay(0)
talkative.delay()
dying.apply_async((9,), task_id={EVIL!r})
deaf.delay()
sleeping.apply_async((60,), soft_time_limit=1)
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": APPLICATIONS, **env}, check=True)
    text = wait_for_text(api, "3 succeeded 3 retried 4 failed", timeout=60)
    assert "Workers too few 1 of 2 alive." in text
    assert f"one@{os.uname().nodename} prefork 0 of 2" in text
    assert "Queue Waiting Oldest celery 0 " in text
    assert "1 dead letter" in text
    failures = text.partition("Recent failures")[2]
    when = r"\S+ \S+ UTC, \d+ m?s ago"
    assert re.search(rf"failed faulty_worker.talkative {when} ValueError: .*\?key=\*\*", failures)
    assert re.search(rf"timed out faulty_worker.deaf {when} TimeLimitExceeded", failures)
    assert re.search(rf"timed out faulty_worker.sleeping {when} SoftTimeLimitExceeded", failures)
    assert re.search(rf"died faulty_worker.dying {when} WorkerLostError: ", failures)
    assert EVIL in failures  # as text
    page = api.get("/status").text
    assert SECRET not in page
    assert "<script" not in page
    assert "<img" not in page
    [minute, *_] = redis.client(0).keys(f"{MINUTE}*")
    assert 0 < redis.client(0).ttl(minute) <= MINUTE_KEPT


def test_only_the_last_failures_are_kept(redis: RedisServer) -> None:
    client, metrics = redis.client(2), WorkerMetrics(Celery())
    for number in range(FAILURES_KEPT + 10):
        metrics.failed("task", str(number), "failed", "error")
        if number % 7 == 0:
            metrics.report(client, "node", None)
    metrics.report(client, "node", None)
    kept = [json.loads(failure)["id"] for failure in client.lrange(FAILURES, 0, -1)]
    assert kept == [str(number) for number in reversed(range(10, FAILURES_KEPT + 10))]


def test_alerts_fire_and_are_resolved(api: Api) -> None:
    assert tell(api, "RedisDown", {}, host="one", severity="critical").status_code == 204
    assert tell(api, "RedisDown", {}, host="two", severity="critical").status_code == 204
    worker_loop = {"labels": {"alertname": "WorkerRestartLoop", "severity": "warning", "worker": "a"}}
    ended = {"labels": {"alertname": "WorkerRestartLoop", "worker": "b"}, "status": "resolved"}
    assert tell(api, "WorkerRestartLoop", worker_loop, ended).status_code == 204
    text = wait_for_text(api, "3 alerts fire")
    assert "critical RedisDown on one since 2026-01-01 12:00:00 UTC, " in text
    assert "RedisDown is what it says. Runbook: docs/runbooks/RedisDown.md" in text
    assert text.index("RedisDown on two") < text.index("warning WorkerRestartLoop")
    assert tell(api, "RedisDown", {"status": "resolved"}, host="one").status_code == 204
    assert tell(api, "WorkerRestartLoop", {"status": "resolved"}).status_code == 204
    text = wait_for_text(api, "1 alert fires")
    assert "RedisDown on two" in text
    tell(api, "RedisDown", {"status": "resolved"}, host="two")


def test_the_watchdog_is_a_sign_of_life(api: Api, redis: RedisServer) -> None:
    client = redis.client(0)
    assert tell(api, "Watchdog", {}, severity="none").status_code == 204
    text = wait_for_text(api, "Alertmanager was heard", "Alerts None fires.")
    assert "Alerting works" in text
    client.hset("alerts", HEARD.decode(), int(time.time()) - SILENT_SECONDS - 1)
    wait_for_text(
        api, "Alerting silent Alertmanager was last heard 10 min ago: alerts may not arrive.", "Alerting: silent"
    )
    tell(api, "Watchdog", {"status": "resolved"}, severity="none")
    assert int(client.hget("alerts", HEARD.decode()) or 0) < time.time() - SILENT_SECONDS


def test_what_is_not_repeated_is_forgotten(api: Api, redis: RedisServer) -> None:
    client = redis.client(0)
    tell(api, "DiskFilling", {}, host="one")
    wait_for_text(api, "DiskFilling")
    [group] = set(client.hkeys("alerts")) - {HEARD.decode()}
    told = json.loads(str(client.hget("alerts", group)))
    client.hset("alerts", group, json.dumps({**told, "told": told["told"] - GROUP_KEPT - 1}))
    wait_for(lambda: "DiskFilling" not in look(api))
    tell(api, "Watchdog", {})
    assert client.hkeys("alerts") == [HEARD.decode()]


def test_alerts_cannot_fill_the_broker(api: Api, redis: RedisServer) -> None:
    for number in range(MAX_GROUPS + 5):
        assert tell(api, "DiskFilling", {}, host=str(number)).status_code == 204
    assert redis.client(0).hlen("alerts") == MAX_GROUPS + 1  # and the watchdog
    assert redis.client(0).ttl("alerts") > 0
    redis.client(0).delete("alerts")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"{}",
        b"[]",
        b'{"groupKey": "x"}',
        b'{"groupKey": "x", "alerts": [{"status": "perhaps", "labels": {}}]}',
        b'{"groupKey": "x", "alerts": [{"status": "firing", "labels": {"alertname": 1}}]}',
        json.dumps({"groupKey": "x" * 5000, "alerts": []}).encode(),
        json.dumps({"groupKey": "x", "alerts": [{"status": "firing", "labels": {}}] * 51}).encode(),
    ],
)
def test_nonsense_is_rejected(api: Api, redis: RedisServer, nonsense: bytes) -> None:
    answer = api.post("/status/alerts", content=nonsense, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("body")
    assert not redis.client(0).exists("alerts")


def test_whatever_an_alert_says_is_text(api: Api) -> None:
    texts = {"summary": EVIL, "runbook": f"javascript:{EVIL}"}
    labels = {"alertname": EVIL, "host": EVIL, "severity": EVIL}
    tell(api, "Evil", {"labels": labels, "annotations": texts, "startsAt": "9999-12-31T23:59:59Z"})
    text = wait_for_text(api, "1 alert fires")
    assert text.partition("Runs in the last hour")[0].count(EVIL) == len(labels) + len(texts)
    page = api.get("/status").text
    assert "<script" not in page
    assert "<img" not in page
    assert "href" not in page
    tell(api, "Evil", {"annotations": {"runbook": 'https://wiki.example/"onclick=x'}})
    wait_for_text(api, "wiki.example")
    assert '<a href="https://wiki.example/&#34;onclick=x">' in api.get("/status").text
    tell(api, "Evil", {"status": "resolved"})


def test_many_readers_ask_redis_no_more_often(api: Api, redis: RedisServer) -> None:
    def asked() -> int:
        return int(redis.client(0).info("commandstats")["cmdstat_lrange"]["calls"])

    before = asked()
    for _ in range(100):
        look(api)
    assert asked() - before <= 2


@pytest.mark.usefixtures("redis_away")
def test_without_redis_it_says_so_within_a_second(api: Api) -> None:
    slowest, ends = 0.0, time.monotonic() + 2 * SNAPSHOT_SECONDS
    while time.monotonic() < ends:
        began = time.monotonic()
        look(api)
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.01)  # on a quick machine, more than the 1000 requests per second that one client has
    assert slowest < 1
    text = look(api)
    assert "Broker broken Redis does not answer" in text
    assert "Results broken Redis does not answer" in text
    assert "Workers unknown" in text
    assert "Queues Unknown while the broker is away." in text
    answer = tell(api, "Watchdog", {})
    assert answer.status_code == 503  # Alertmanager tells again


def measured(page: str, width: int, directory: Path, *options: str) -> dict[str, Any]:
    """Return what a browser says of a page."""
    # A window cannot be as narrow as a phone, a frame can.
    (directory / "page.html").write_text(page.replace("</body>", f"{MEASURE}</body>"))
    (directory / "frame.html").write_text(
        f'<body><iframe src="page.html" width="{width}" height="800" frameborder="0"></iframe>'
        "<script>onload = () => document.title = frames[0].document.title</script>"
    )
    command = [*CHROMIUM, "--allow-file-access-from-files", *options, "--dump-dom", f"file://{directory}/frame.html"]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found: dict[str, Any] = json.loads(unescape(re.findall("<title>(.*?)</title>", dom)[0]))
    return found


@pytest.fixture(scope="module")
def full_page(api: Api, redis: RedisServer) -> str:
    """A page that shows everything, long words among it."""
    client = redis.client(0)
    long = "word" * 60
    failure = {"time": int(time.time()), "task": long, "id": long, "outcome": "timed_out", "error": long}
    client.lpush(FAILURES, json.dumps(failure))
    client.hset("workers", f"{long}@host", f"{int(time.time()) - 100} " + json.dumps({"pool": "prefork", "held": 0}))
    client.hset(
        f"{MINUTE}{int(time.time()) // 60 - 3}", mapping={"succeeded": 5, "failed": 1, "wait": 6, "wait_sum": 9}
    )
    texts = {"description": 50 * long, "summary": long, "runbook": f"https://{long}.example/"}
    tell(api, "DiskFilling", {"annotations": texts}, host=long)
    tell(api, "RedisDown", {}, severity="critical")
    wait_for_text(api, f"{long}@host", "2 alerts fire")
    return api.get("/status").text


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("options", [(), (DARK,)], ids=["light", "dark"])
def test_it_is_readable(full_page: str, tmp_path: Path, width: int, options: tuple[str, ...]) -> None:
    seen = measured(full_page, width, tmp_path, *options)
    assert (seen["inner"], seen["width"]) == (width, width), "it must not be scrolled sideways"
    assert seen["dark"] == bool(options)
    assert len(seen["texts"]) > 40
    assert [text for text in seen["texts"] if text[1] < 4.5] == []
    assert seen["asked"] == []


class Front(http.server.BaseHTTPRequestHandler):
    """Passes requests on with a key, so that a browser need not be given one, and writes them down."""

    def __init__(self, api: Api, asked: list[str], *args: Any) -> None:
        """Pass on to ``api``."""
        self._api, self._asked = api, asked
        super().__init__(*args)

    def do_GET(self) -> None:
        """Pass a request on."""
        self._asked.append(self.path)
        answer = self._api.get(self.path)
        self.send_response(answer.status_code)
        for name in ("content-type", "content-security-policy", "x-content-type-options"):
            self.send_header(name, answer.headers[name])
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.mark.usefixtures("full_page")
def test_its_own_policy_lets_it_show_itself(api: Api, tmp_path: Path) -> None:
    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Front, api, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    picture = tmp_path / "page.png"
    command = [*CHROMIUM, "--enable-logging=stderr", f"--screenshot={picture}", f"--window-size={DESKTOP},900"]
    ended = subprocess.run(
        [*command, f"http://127.0.0.1:{server.server_port}/status"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    server.shutdown()
    assert picture.stat().st_size > 20_000
    assert "CONSOLE" not in ended.stderr, "the browser refuses a part of the page"
    assert set(asked) == {"/status"}
