"""An application that does not know of celery-durable gets its guarantees by the way it is started."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery

from celery_durable.options import OptionError, Options
from celery_durable.testing import free_port, wait_for
from tests.support import REPOSITORY, Program, Stack

HERE = REPOSITORY / "tests/foreign"
LOADER = {"CELERY_LOADER": "celery_durable.loader:load"}
DURABLE, PLAIN = ("-m", "celery_durable"), ("-m", "celery")


class Shop:
    """The application on a Redis of its own."""

    def __init__(self, stack: Stack, directory: Path) -> None:
        """Point it to Redis."""
        self.stack, self.directory = stack, directory
        self.ledger = directory / "ledger"
        self.env = {
            "REDIS_URL": stack.redis.url(0),
            "RESULTS_URL": stack.redis.url(1),
            "LEDGER": str(self.ledger),
            "PYTHONPATH": str(HERE),
        }

    def start(self, *command: str, **env: str) -> Program:
        """Start one of its programs in its own directory."""
        number = len(self.stack.workers)
        log = self.directory / f"program-{number}.log"
        shell = ["env", "--chdir", str(HERE), sys.executable, *command]
        program = Program(shell, log, {**self.env, **env}, stderr=subprocess.STDOUT)
        self.stack.workers.append(program)
        return program

    def worker(self, way: Sequence[str] = DURABLE, name: str = "w@host", **env: str) -> Program:
        """Start a worker that is ready."""
        program = self.start(*way, "-A", "shop.jobs", "worker", "-c", "2", "-n", name, "-l", "info", **env)
        program.wait_for_output("ready")
        return program

    def run(self, code: str, **env: str) -> str:
        """Run code as another program of it, which does not know of the library unless ``env`` says so."""
        result = subprocess.run(
            [sys.executable, "-c", f"from shop.jobs import *\n{code}"],
            env={**os.environ, **self.env, **env},
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def noted(self) -> list[str]:
        """Return what its tasks have written down."""
        return self.ledger.read_text().splitlines() if self.ledger.exists() else []

    def nothing_waits(self) -> bool:
        """Tell whether no message is left."""
        broker = self.stack.redis.client(0)
        lists = [
            key for key in broker.scan_iter(_type="list") if key != "failures" and not str(key).endswith(".pidbox")
        ]
        return lists == [] and broker.hlen("accepted") == 0


@pytest.fixture
def shop(stack: Stack, tmp_path: Path) -> Shop:
    """Somebody else's application."""
    return Shop(stack, tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize("way", ["command", "loader"])
@pytest.mark.parametrize("producer", [{}, LOADER], ids=["plain producer", "producer with the loader"])
def test_an_unchanged_application_works(shop: Shop, way: str, producer: dict[str, str]) -> None:
    shop.worker(DURABLE) if way == "command" else shop.worker(PLAIN, **LOADER)
    chord = "from celery import chord; print(chord(order.s(n) for n in range(5))(total.s()).get(timeout=20))"
    assert shop.run(chord, **producer) == "10"
    assert shop.run("print(mail.delay('a@example.com').get(timeout=20))", **producer) == "a@example.com"
    wait_for(shop.nothing_waits)


@pytest.mark.integration
def test_a_killed_worker_loses_nothing(shop: Shop) -> None:
    first = shop.worker()
    shop.run("[order.delay(n, 0.5) for n in range(8)]")
    wait_for(lambda: "start 1" in shop.noted())
    first.stop(signal.SIGKILL)
    shop.worker()
    wait_for(shop.nothing_waits, seconds=60)
    assert {f"end {n}" for n in range(8)} <= set(shop.noted())


@pytest.mark.integration
def test_a_task_without_a_limit_goes_to_another_worker_of_the_host_at_once(shop: Shop) -> None:
    first = shop.worker()
    shop.worker(name="other@host")
    shop.run("[order.delay(n, 3) for n in range(4)]")
    wait_for(lambda: len(shop.noted()) == 4)
    first.stop(signal.SIGKILL)
    wait_for(lambda: {f"end {n}" for n in range(4)} <= set(shop.noted()), seconds=25)
    wait_for(shop.nothing_waits)
    assert len([word for word in shop.noted() if word.startswith("end")]) == 4


@pytest.mark.integration
def test_what_acknowledges_early_runs_at_most_once_and_the_rest_is_retried(shop: Shop) -> None:
    shop.worker()
    shop.run("once.delay(7)")
    assert shop.run("print(dies_first.apply_async(countdown=0).get(timeout=60))") == "survived"
    wait_for(shop.nothing_waits)
    assert shop.noted().count("start 7") == 1


@pytest.mark.integration
def test_without_a_result_backend(shop: Shop) -> None:
    """A task that was redelivered, or may have been, ran not at all."""
    shop.env["RESULTS_URL"] = ""
    first = shop.worker()
    shop.run("order.delay(1, 1)")
    wait_for(lambda: "start 1" in shop.noted())
    first.stop(signal.SIGKILL)
    shop.worker()
    wait_for(lambda: "end 1" in shop.noted(), seconds=30)
    wait_for(shop.nothing_waits)


PICKLES = {"accept_content": ["pickle", "json"]}
# What applications configure -> how they send a task then.
VARIANTS: dict[str, tuple[dict[str, str], str]] = {
    "protocol 1": ({"SHOP_MORE": '{"task_protocol": 1}'}, "order.delay(1)"),
    "no missing queues": ({"SHOP_MORE": '{"task_create_missing_queues": false}'}, "order.delay(1)"),
    "a queue for each worker": (
        {"SHOP_MORE": '{"worker_direct": true}'},
        "order.apply_async((1,), exchange='C.dq2', routing_key='w@host')",
    ),
    "topics": ({"SHOP_TOPIC": "yes"}, "order.apply_async((1,), queue='orders', routing_key='orders.eu.new')"),
    "pickle": (
        {"SHOP_MORE": json.dumps({"task_serializer": "pickle", "result_serializer": "pickle", **PICKLES})},
        "order.delay(1)",
    ),
    "compression": ({"SHOP_MORE": '{"task_compression": "gzip", "result_compression": "gzip"}'}, "order.delay(1)"),
    "results by messages": ({"RESULTS_URL": "rpc://"}, "order.delay(1)"),
    "results without details": (
        {"SHOP_MORE": '{"result_extended": false, "task_track_started": false}'},
        "order.delay(1)",
    ),
    "threads": ({"SHOP_MORE": '{"worker_pool": "threads"}'}, "order.delay(1)"),
    "solo": ({"SHOP_MORE": '{"worker_pool": "solo"}'}, "order.delay(1)"),
    "events": ({"SHOP_MORE": '{"worker_send_task_events": true, "task_send_sent_event": true}'}, "order.delay(1)"),
}


@pytest.mark.integration
@pytest.mark.parametrize("producer", [{}, LOADER], ids=["plain producer", "producer with the loader"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_applications_configure_works(shop: Shop, variant: str, producer: dict[str, str]) -> None:
    env, call = VARIANTS[variant]
    shop.worker(DURABLE, C_FORCE_ROOT="yes", **env)
    assert shop.run(f"print({call}.get(timeout=20))", **env, **producer) == "1"
    wait_for(shop.nothing_waits)


@pytest.mark.integration
def test_a_priority_of_a_plain_producer_leads_nowhere_else(shop: Shop) -> None:
    shop.run("[order.apply_async((n,), priority=n) for n in range(10)]")
    shop.worker()
    wait_for(lambda: {f"end {n}" for n in range(10)} <= set(shop.noted()), seconds=20)
    wait_for(shop.nothing_waits)


@pytest.mark.integration
def test_beat_sends(shop: Shop) -> None:
    shop.worker()
    shop.start(*DURABLE, "-A", "shop.jobs", "beat", "--schedule", str(shop.directory / "schedule"))
    wait_for(lambda: shop.noted().count("tick") >= 2)


@pytest.mark.integration
@pytest.mark.parametrize("options", [[], ["--scheduler", "celery.beat:Scheduler"]], ids=["its own", "named"])
def test_of_several_beats_one_sends_and_another_takes_over(shop: Shop, options: list[str]) -> None:
    shop.worker()
    command = [*DURABLE, "-A", "shop.jobs", "beat", "-l", "info", "--pidfile=", *options]
    beats = [
        shop.start(*command, DURABLE_BEAT="shop", DURABLE_HEARTBEAT_FILE=str(shop.directory / name)) for name in "ab"
    ]
    wait_for(lambda: any("sends from now on" in beat.output() for beat in beats))
    # The one that stands by is well, too.
    wait_for(lambda: all((shop.directory / name).exists() for name in "ab"))
    sending, waiting = sorted(beats, key=lambda beat: "sends from now on" not in beat.output())
    began, before = time.monotonic(), shop.noted().count("tick")
    wait_for(lambda: shop.noted().count("tick") >= before + 5)
    assert shop.noted().count("tick") - before <= time.monotonic() - began + 2
    assert "Sending due task" not in waiting.output()

    # It hangs for longer than its lease holds, and sends nothing when it wakes up.
    sending.process.send_signal(signal.SIGSTOP)
    waiting.wait_for_output("sends from now on")
    sent = sending.output().count("Sending due task")
    sending.process.send_signal(signal.SIGCONT)
    sending.wait_for_output("another one sends from now on")
    assert sending.output().count("Sending due task") == sent

    # An orderly end leaves the lease to the other one.
    assert waiting.stop(signal.SIGTERM) == 0
    wait_for(lambda: sending.output().count("this one sends from now on") == 2, seconds=5)


@pytest.mark.integration
def test_where_messages_are_signed_a_plain_producer_gets_no_task_in(shop: Shop) -> None:
    key = {"DURABLE_SIGNING_KEY": "k" * 32}
    shop.worker(DURABLE, **key)
    assert shop.run("print(order.delay(1).get(timeout=20))", **LOADER, **key) == "1"
    shop.run("order.delay(2)")
    wait_for(lambda: shop.stack.redis.client(0).llen("dead_letters") == 1)
    assert "start 2" not in shop.noted()


@pytest.mark.integration
def test_the_application_keeps_its_own_settings(shop: Shop) -> None:
    code = (
        "import json; names = ('timezone', 'task_default_queue', 'task_acks_late', 'worker_prefetch_multiplier', "
        "'task_serializer', 'worker_consumer'); print(json.dumps({n: str(app.conf[n]) for n in names}))"
    )
    told: dict[str, Any] = json.loads(shop.run(code, **LOADER))
    assert told == {
        "timezone": "Europe/Berlin",
        "task_default_queue": "default",
        "task_acks_late": "True",
        "worker_prefetch_multiplier": "1",
        "task_serializer": "json",
        "worker_consumer": "celery_durable.worker.consumer:Consumer",
    }
    changed = "app.conf.task_acks_late = False; app.conf.worker_prefetch_multiplier = 4; " + code
    told = json.loads(shop.run(changed, **LOADER))
    assert (told["task_acks_late"], told["worker_prefetch_multiplier"]) == ("False", "4")


def test_check_says_what_holds(tmp_path: Path) -> None:
    env = {"REDIS_URL": "redis://localhost:1/0", "LEDGER": str(tmp_path / "ledger"), "PYTHONPATH": str(HERE)}
    good = run_command("check", "-A", "shop.jobs", RESULTS_URL="redis://localhost:1/1", **env)
    assert good.returncode == 0, good.stderr
    assert "Queues: default, mails; the default one is default." in good.stdout
    assert "at most once, by their acks_late: shop.jobs.once." in good.stdout
    assert "breaks" not in good.stdout
    assert "Results are in no backend" in run_command("check", "-A", "shop.jobs", **env).stdout
    bad = run_command("check", "-A", "shop.jobs", "--json", **{**env, "REDIS_URL": "amqp://localhost"})
    assert bad.returncode == 1
    [why] = [finding["sentence"] for finding in json.loads(bad.stdout) if finding["level"] == "breaks"]
    assert why.startswith("The broker is amqp, and must be Redis: set CELERY_BROKER_URL")
    on_a_host = run_command(
        "check", "-A", "shop.jobs", **{**env, "REDIS_URL": "amqp://", "CELERY_BROKER_URL": "redis://"}
    )
    assert on_a_host.returncode == 0, on_a_host.stdout


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere.jobs", "-A nowhere.jobs needs the module nowhere, which cannot be found from"),
        ("needy", "-A needy needs the module task_app, which cannot be found from"),
        ("web", "-A web is a Flask: name the Celery application, like web:celery."),
    ],
)
def test_check_says_why_there_is_no_application(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "needy.py").write_text("import task_app\n")
    (tmp_path / "web.py").write_text("class Flask: ...\napp = Flask()\n")
    failed = run_command("check", "-A", name, PYTHONPATH=str(tmp_path))
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"Error: {sentence}")
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.integration
def test_secrets_of_files_are_hidden_and_logs_are_json_by_choice(shop: Shop, tmp_path: Path) -> None:
    (secrets := tmp_path / "secrets").mkdir()
    (secrets / "DATABASE_URL").write_text("postgres://shop:a-long-password@db/shop\n")
    worker = shop.worker(DURABLE, SECRETS_DIRECTORY=str(secrets), DURABLE_LOGS="json")
    error = shop.run("try: leak.delay().get(timeout=20)\nexcept Exception as e: print(e)")
    assert error == "no connection to postgres://shop:**@db/shop"
    worker.wait_for_output("Task failed")
    # Celery's warning of the user root goes another way.
    lines = [json.loads(line) for line in worker.output().splitlines() if line.startswith("{")]
    [failed] = [line for line in lines if line["message"].startswith("Task failed")]
    assert failed["task_name"] == "shop.jobs.leak"
    assert "a-long-password" not in worker.output()


@pytest.mark.integration
def test_json_logs_have_celerys_own_level_where_none_is_given(shop: Shop) -> None:
    worker = shop.start(*DURABLE, "-A", "shop.jobs", "worker", "-c", "2", DURABLE_LOGS="json")
    shop.run("try: leak.delay().get(timeout=20)\nexcept Exception as e: print(e)")
    worker.wait_for_output("Task failed")
    assert "INFO" not in {json.loads(line)["level"] for line in worker.output().splitlines() if line.startswith("{")}


def run_command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *DURABLE, *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_exec_hands_secrets_over(tmp_path: Path) -> None:
    (tmp_path / "DATABASE_URL").write_text("postgres://secret\n")
    (tmp_path / "SET_ALREADY").write_text("no")
    (tmp_path / "readme.txt").write_text("no variable")
    code = "import os; print(*(os.environ.get(n) for n in ('DATABASE_URL', 'SET_ALREADY', 'CELERY_LOADER')))"
    env = {"SECRETS_DIRECTORY": str(tmp_path), "SET_ALREADY": "yes"}
    result = run_command("exec", "--", sys.executable, "-c", code, **env)
    assert result.stdout.split() == ["postgres://secret", "yes", "celery_durable.loader:load"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["exec"], ["name a program"]), (["exec", "--", "no-such-program"], ["no-such-program", "cannot be run"])],
)
def test_exec_says_what_is_wrong(arguments: list[str], words: list[str]) -> None:
    result = run_command(*arguments)
    assert result.returncode == 1
    assert all(word in result.stderr for word in words)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("DURABLE_SIGNING_KEY", "short", ["32 characters"]),
        ("DURABLE_MESSAGE_LIMIT", "much", ["'much'", "at least 1024"]),
        ("DURABLE_MEMORY_SHARE", "80", ["'80'", "at most 1"]),
        ("DURABLE_CLIENT", "browser", ["'browser'", "worker or web"]),
        ("DURABLE_LOGS", "xml", ["'xml'", "json or plain"]),
    ],
)
def test_a_wrong_variable_is_one_sentence(variable: str, value: str, words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        Options.from_environment({variable: value})
    assert all(word in str(error.value) for word in [variable, *words])
    assert "short" not in str(error.value)


def test_variables_become_options() -> None:
    env = {"DURABLE_SIGNING_KEY": "n" * 32 + "," + "o" * 32, "DURABLE_LOGS": "json", "DURABLE_QUEUE_LIMIT": ""}
    options = Options.from_environment({**env, "DURABLE_MASKED": "DATABASE_URL", "DATABASE_URL": "postgres://x:pw@y/"})
    assert options.signing_keys == (b"n" * 32, b"o" * 32)
    assert options.json_logs
    assert options.queue_max_length == Options().queue_max_length
    assert "postgres://x:pw@y/" in options.secrets
    assert "n" * 32 not in repr(options)


@pytest.mark.integration
def test_a_project_of_djangos_works(shop: Shop, tmp_path: Path) -> None:
    """Through its fixup, a namespace of settings, discovered tasks, WSGI, and a schedule in its database."""
    shop.env |= {"DJANGO_SECRET_KEY": secrets.token_hex(), "DATABASE": str(tmp_path / "store.sqlite3")}
    shop.env["DJANGO_SETTINGS_MODULE"] = "store.settings"
    assert shop.start("-m", "django", "migrate", "--verbosity", "0").process.wait(60) == 0
    schedule = (
        "import django; django.setup(); from django_celery_beat.models import *; "
        "every, _ = IntervalSchedule.objects.get_or_create(every=1, period='seconds'); "
        "PeriodicTask.objects.create(interval=every, name='n', task='store.tasks.sell', args='[\"tea\"]')"
    )
    assert shop.start("-c", schedule).process.wait(30) == 0
    shop.start(*DURABLE, "-A", "store", "worker", "-c", "1", "-l", "info").wait_for_output("ready")
    port = free_port()
    shop.start(*DURABLE, "exec", "--", sys.executable, "-m", "store.wsgi", str(port))
    wait_for(lambda: answer(f"http://127.0.0.1:{port}/buy/milk") == "milk", seconds=20)
    shop.start(*DURABLE, "-A", "store", "beat", "-l", "info", "--pidfile=")
    wait_for(lambda: "end tea" in shop.noted(), seconds=30)
    assert shop.stack.redis.client(0).type("figures") == "hash"  # the worker is ours


def answer(url: str) -> str:
    """Return what a server answers; nothing as long as it does not listen."""
    try:
        return httpx.get(url, timeout=20).text
    except httpx.ConnectError:
        return ""


@pytest.mark.integration
@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_no_task_of_djangos_gets_the_connection_of_the_one_before(shop: Shop, tmp_path: Path, pool: str) -> None:
    """Django closes a connection at the end of a request; Celery's fixup at the end of a task, in its own thread."""
    shop.env |= {"DJANGO_SECRET_KEY": secrets.token_hex(), "DATABASE": str(tmp_path / "store.sqlite3")}
    shop.env["DJANGO_SETTINGS_MODULE"] = "store.settings"
    assert shop.start("-m", "django", "migrate", "--verbosity", "0").process.wait(60) == 0
    worker = shop.start(*DURABLE, "-A", "store", "worker", "--pool", pool, "-c", "1", "-l", "info")
    worker.wait_for_output("ready")
    client = Celery(broker=shop.env["REDIS_URL"], backend=shop.env["RESULTS_URL"], set_as_current=False)
    for task in ("count", "count_in_turn"):
        for _ in range(3):
            sent = client.send_task(f"store.tasks.{task}", queue="store")
            assert sent.get(timeout=20) == [0, True]
