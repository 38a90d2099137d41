"""What the api role promises: systemd holds the socket, the processes are sandboxed, answers come in time."""

from __future__ import annotations

import json
from collections.abc import Callable

from conftest import CURL, Api, Process, security_exposure
from testinfra.host import Host

from celery_durable.testing import wait_for

UNIT = "typesafe-api.service"


def test_it_answers_on_the_loopback_address_alone(host: Host, api: Api) -> None:
    assert api.get("/health").status_code == 200
    listeners = host.check_output("ss --no-header --listening --tcp --numeric 'sport = :8000'").splitlines()
    assert [line.split()[3] for line in listeners] == ["127.0.0.1:8000"]


def test_it_has_one_process_per_processor(host: Host, process: Callable[[str], Process]) -> None:
    children = host.check_output(f"pgrep --full --parent {process(UNIT).pid} spawn_main").split()
    assert len(children) == int(host.check_output("nproc"))


def test_the_sandbox_is_in_force(host: Host, process: Callable[[str], Process]) -> None:
    process(UNIT).assert_sandboxed("typesafe-api")
    process(UNIT).assert_closed()
    assert security_exposure(host, UNIT) <= 1.5


def test_it_may_connect_to_redis_but_not_outwards(host: Host) -> None:
    # The filter is the control group's: a process that joins it is under it.
    group = host.check_output(f"systemctl show --value --property ControlGroup {UNIT}")
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
    join = f"echo \\$\\$ >/sys/fs/cgroup{group}/cgroup.procs; exec python3 -c '{connect}'"
    address = host.check_output("hostname --ip-address").split()[0]

    def reaches(command: str, *target: object) -> bool:
        return bool(host.run(f'sh -c "{command} {target[0]} {target[1]}"').succeeded)

    assert reaches(join, "127.0.0.1", 6379)
    assert reaches(f"exec python3 -c '{connect}'", address, 22)
    assert not reaches(join, address, 22)


def test_a_task_goes_through_and_a_bad_one_does_not(api: Api) -> None:
    api.wait(api.enqueue())
    assert api.post("/tasks/enqueue", json={"data": "not an object"}).status_code == 422
    assert api.get("/tasks/status/not-an-id").status_code == 404
    assert api.get("/metrics/celery").json()["workers"]["count"] == 1


def test_prometheus_reads_what_worker_and_all_processes_count(host: Host, api: Api) -> None:
    assert host.check_output(f"curl -s -o /dev/null -w '%{{http_code}}' {api.url}/metrics") == "401"
    before = [api.enqueue() for _ in range(8)]
    for task in before:
        api.wait(task)

    def numbers() -> dict[str, float]:
        page = host.check_output(f"{CURL} {api.url}/metrics").splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in page if line[:1] != "#")}

    task = 'task="app.agents.tasks.example_task.example_agent_task"'
    ended = f'celery_tasks_ended_total{{outcome="succeeded",{task}}}'
    wait_for(lambda: numbers().get(ended, 0) >= len(before), "the worker's counts", 30)
    # Whichever process answers, it knows of all requests.
    seen = {numbers()[f"celery_tasks_enqueued_total{{{task}}}"] for _ in range(6)}
    assert len(seen) == 1
    assert seen.pop() >= len(before)
    assert (numbers()["celery_workers_expected"], numbers()["celery_workers_alive"]) == (1, 1)


def test_a_body_over_the_limit_is_rejected(host: Host) -> None:
    # Not a pipe: standard input carries the key.
    host.check_output("head -c 300000 /dev/zero >/run/large-body")
    command = f"{CURL} -o /dev/null -w '%{{http_code}}' -H 'Content-Type: application/json'"
    assert host.check_output(f"{command} --data-binary @/run/large-body http://127.0.0.1:8000/tasks/enqueue") == "413"


def test_without_its_broker_it_says_so_at_once(host: Host, api: Api) -> None:
    host.run_expect([0], "systemctl stop redis-server@broker")
    try:
        answer = host.check_output(
            f"{CURL} -i -w '%{{time_total}}' -H 'Content-Type: application/json' -d '{{\"data\": {{}}}}' "
            "http://127.0.0.1:8000/tasks/enqueue"
        )
        assert " 503 " in answer.splitlines()[0]
        assert "retry-after:" in answer.lower()
        # Half a second; a busy machine takes longer.
        assert float(answer.rsplit("}", 1)[1]) < 3
        assert api.get("/health").status_code == 200
        assert api.get("/health/ready").status_code == 503
    finally:
        host.run_expect([0], "systemctl start redis-server@broker")
    wait_for(lambda: api.get("/health/ready").status_code == 200, "ready again", 30)
    api.wait(api.enqueue(), seconds=60)


def test_a_restart_rejects_nobody(host: Host) -> None:
    # Exit status 7 is curl's "connection refused". The loop runs over two restarts.
    request = "curl -s -o /dev/null --max-time 10 http://127.0.0.1:8000/health; echo $?"
    loop = f"for i in $(seq 300); do {request}; sleep 0.02; done"
    restarts = f"(sleep 1; systemctl restart {UNIT}; sleep 2; systemctl restart {UNIT}) >/dev/null 2>&1 &"
    statuses = host.check_output(f"bash -c '{restarts} {loop}'").split()
    assert len(statuses) == 300
    assert "7" not in statuses
    # A connection that a stopping process had taken but not read yet is reset now and then (uvicorn).
    assert len([status for status in statuses if status != "0"]) <= 2


def test_every_line_of_the_log_is_json_and_holds_no_password(host: Host, secret: Callable[[str], str]) -> None:
    log = host.check_output(f"journalctl --no-pager --output cat --unit {UNIT} _COMM=uvicorn")
    assert secret("redis_password") not in log
    for line in log.splitlines():
        assert {"timestamp", "level", "service", "message"} <= json.loads(line).keys()


def test_it_is_there_after_a_reboot(api: Api, reboot: Callable[[], None]) -> None:
    reboot()
    wait_for(lambda: api.get("/health/ready").status_code == 200, "ready after the reboot", 30)
