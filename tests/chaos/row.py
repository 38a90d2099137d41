"""One row of the table: load, a fault in its middle, and what became of every accepted task."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from celery_durable.testing import wait_for
from tests.chaos.faults import Fault
from tests.chaos.host import BEAT, ChaosError, Host
from tests.chaos.kinds import LEAD, SUCCESS, OtherKinds, Sent, began_too_early, ran_although_revoked, ticks
from tests.chaos.load import Load, not_ended
from tests.chaos.probe.sitecustomize import TICK_SECONDS

# Seconds that a row waits for the first task after the fault before it gives up on it.
LONGEST_RECOVERY = 120.0
# Seconds without a start, on top of the fault's own length: a host stops, boots, and its worker starts.
LONGEST_STALL = 30.0
# Seconds from the end of the load until all tasks must be done: a task's hard limit, and what a worker needs to stop.
DRAIN = 60 + 30 + 30


@dataclass(frozen=True)
class Pace:
    """How much load a row gets."""

    rate: float  # tasks per second
    before: float  # seconds of load before the fault
    after: float  # seconds of load after the recovery
    slack: float  # how often the limits of recovery and stall: the short run shares its machine with other scenarios


FULL = Pace(rate=1.25, before=6, after=6, slack=1)
SHORT = Pace(rate=1.0, before=4, after=3, slack=3)


@dataclass
class Result:
    """What a row has shown."""

    host: str
    fault: str
    seconds: float = 0
    proof: str = ""
    accepted: int = 0
    others: int = 0  # of the accepted: those of other kinds than the load
    finished: int = 0
    lost: int = 0
    repeated: int = 0
    overlapping: int = 0
    unexplained: int = 0
    forgotten: int = 0  # repeats because Redis forgot that the task had been done, as the fault makes it do
    unconfirmed: int = 0  # revocations that no worker has confirmed
    ran_revoked: int = 0
    early: int = 0  # tasks of a canvas that began before those in front of them were done
    strays: int = 0
    ticks: int = 0  # what beat has sent
    beat_stall: float = 0
    stall: float = 0
    recovery: float | None = None
    refused: int = 0
    unanswered: int = 0
    slowest: float = 0
    explanations: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run(host: Host, fault: Fault, pace: Pace) -> Result:
    """Run one row; whatever goes wrong is among the result's problems."""
    result = Result(host.name, fault.name)
    began = time.monotonic()
    try:
        _run(host, fault, pace, result)
    except (ChaosError, AssertionError) as error:
        result.problems.append(str(error))
    result.seconds = time.monotonic() - began
    return result


def _run(host: Host, fault: Fault, pace: Pace, result: Result) -> None:
    wait_for(host.is_healthy, "Redis, API, worker and Flower healthy before the row", 60)
    # It runs since the host was installed.
    host.run(f"systemctl stop {BEAT}")
    wait_for(host.queue_is_empty, "an empty broker before the row", 60)
    fault.prepare(host)
    try:
        host.forget_ledger()
        host.run(f"systemctl start {BEAT}")
        with OtherKinds(host) as others, Load(host.url, host.api_key, pace.rate, host.task) as load:
            # This long the load lasts; there is nothing to wait for.
            time.sleep(pace.before - LEAD)
            others.begin()
            time.sleep(max(0.0, load.began + pace.before - time.time()))
            issued = time.clock_gettime(time.CLOCK_BOOTTIME)
            over = _inject(host, fault, result)
            result.recovery = _recovery(host, over, issued if fault.replaces_worker else 0)
            # What waits meanwhile has its time until the load ends.
            others.end()
            if result.recovery is not None:
                time.sleep(pace.after)
        host.run(f"systemctl stop {BEAT}")
        others.sent += ticks(host.ledger())
        ends = dict.fromkeys(load.accepted, frozenset({SUCCESS})) | others.ends()
        unfinished = _drain(host, ends)
        _judge(host, fault, load, others.sent, unfinished, result=result, slack=pace.slack)
        if not host.flower_answers():
            result.problems.append("Flower does not answer.")
    finally:
        fault.cleanup(host)
        host.run(f"systemctl stop {BEAT}", check=False)


def _inject(host: Host, fault: Fault, result: Result) -> float:
    """Bring the fault, heal it, and return the time from which the recovery counts."""
    issued = time.time()
    try:
        seen = fault.inject(host)
        time.sleep(fault.hold)
        fault.heal(host, seen)
        healed = time.time()
        result.proof = fault.proof(host, seen)
    except (ChaosError, AssertionError) as error:
        result.problems.append(f"The fault did not happen: {error}")
        healed = time.time()
    return issued if fault.over_at_once else healed


def _starts(events: list[dict[str, Any]]) -> list[float]:
    return sorted(event["time"] for event in events if event["event"] == "start")


def _recovery(host: Host, over: float, born: float) -> float | None:
    """Return the seconds until the first task was started after the fault, by a process born after ``born``."""

    def counts(event: dict[str, Any]) -> bool:
        birth = int(event["birth"]) / os.sysconf("SC_CLK_TCK")  # both since the boot of this machine
        return event["event"] == "start" and event["time"] > over and birth > born

    while time.time() < over + LONGEST_RECOVERY:
        if starts := [event["time"] for event in host.ledger() if counts(event)]:
            return float(min(starts)) - over
        time.sleep(0.2)
    return None


def _finished(events: list[dict[str, Any]]) -> set[str]:
    """Return the tasks that ended with success, and those of other kinds that did their work.

    The process of a chord's part may die when its success is stored and its callback sent, but its end is not written.
    """
    return {event["id"] for event in events if event["event"] == "done" or event.get("state") == "SUCCESS"}


def _drain(host: Host, ends: dict[str, frozenset[str]]) -> dict[str, str]:
    """Wait until all tasks are done and the broker holds none; return those that are not done in time, and why."""
    left = dict.fromkeys(ends, "")
    deadline = time.monotonic() + DRAIN
    while time.monotonic() < deadline:
        finished = _finished(host.ledger())
        unended = {
            task_id: "SUCCESS, without its end in the ledger"
            for task_id in left
            if ends[task_id] == {SUCCESS} and task_id not in finished
        }
        left = unended | not_ended(host.url, host.api_key, {task_id: ends[task_id] for task_id in left})
        if not left and host.queue_is_empty():
            break
        time.sleep(0.5)
    return left


def _judge(
    host: Host,
    fault: Fault,
    load: Load,
    others: list[Sent],
    unfinished: dict[str, str],
    *,
    result: Result,
    slack: float,
) -> None:
    events = host.ledger()
    judge_beat(fault, load, events, result, slack)
    result.others = sum(len(sent.accepted) for sent in others)
    result.accepted = len(load.accepted) + result.others
    judge_other_kinds(fault, others, events, unfinished, result)
    result.lost = len(unfinished)
    result.finished = result.accepted - result.lost
    result.refused, result.unanswered, result.slowest = load.refused, load.unanswered, load.slowest
    count_repeats(events, fault, result)
    during = [start for start in _starts(events) if load.began <= start <= load.ended]
    gaps = [later - earlier for earlier, later in pairwise([load.began, *during, load.ended])]
    result.stall = max(0.0, max(gaps) - 1 / load.rate)
    # A canvas that was not accepted may be there in part.
    known = load.accepted.keys() | {task_id for sent in others for task_id in sent.ids}
    strays = {event["id"] for event in events} - known
    result.strays = len(strays)

    problems = result.problems
    problems += load.wrong
    if load.given_up:
        problems.append(f"{load.given_up} requests were never accepted.")
    elif strays:
        problems.append(f"{len(strays)} tasks ran whose id no client was told.")
    if result.lost:
        problems.append(f"{result.lost} accepted tasks are lost: {unfinished}.")
    if result.overlapping:
        problems.append(f"{result.overlapping} tasks were started while their first run still lived.")
    if result.unexplained:
        problems.append(f"{result.unexplained} tasks were started again although they had been done.")
    if result.repeated and not (fault.kills_tasks or fault.forgets):
        problems.append(f"{result.repeated} tasks ran again although the fault ends no process that runs tasks.")
    if result.stall > fault.hold + slack * LONGEST_STALL:
        problems.append(f"No task was started for {result.stall:.0f} s.")
    if not host.queue_is_empty():
        problems.append("Messages are left in the broker although all tasks had their time.")
    if result.recovery is None:
        problems.append(f"No task was started within {LONGEST_RECOVERY:.0f} s after the fault.")
    elif result.recovery > (limit := slack * fault.recovery_limit):
        problems.append(f"The recovery took {result.recovery:.1f} s, more than {limit:.0f} s.")


def judge_beat(fault: Fault, load: Load, events: list[dict[str, Any]], result: Result, slack: float) -> None:
    """Judge when beat has sent: each run once, however often it was started anew, and none for long after the fault."""
    planned = sorted(event["time"] for event in events if event["event"] == "planned")
    result.ticks = len(planned)
    gaps = [later - earlier for earlier, later in pairwise(planned)]
    # What Redis forgot of the last run is sent once more.
    if gaps and min(gaps) < TICK_SECONDS / 2 and not fault.forgets:
        result.problems.append(f"Beat sent two runs within {min(gaps):.1f} s.")
    during = [time for time in planned if load.began <= time <= load.ended]
    result.beat_stall = max(later - earlier for earlier, later in pairwise([load.began, *during, load.ended]))
    if result.beat_stall > fault.hold + slack * LONGEST_STALL:
        result.problems.append(f"Beat sent nothing for {result.beat_stall:.0f} s.")


def judge_other_kinds(
    fault: Fault, others: list[Sent], events: list[dict[str, Any]], unfinished: dict[str, str], result: Result
) -> None:
    """Judge what no other task knows, and take out of ``unfinished`` what Redis may have forgotten."""
    result.unconfirmed = sum(
        sent.kind == "revoked" and sent.ids == sent.accepted and not sent.confirmed for sent in others
    )
    result.ran_revoked = len(ran_although_revoked(others, events))
    result.early = len(began_too_early(others, events))
    if result.ran_revoked:
        result.problems.append(f"{result.ran_revoked} tasks ran although a worker had confirmed that they are revoked.")
    if result.early:
        result.problems.append(f"{result.early} tasks of a canvas ran before those in front of them were done.")
    forgotten = [sent for sent in others if unfinished.keys() & sent.ids]
    # The API sends again what Redis forgot; a plain Celery client and a worker do not. The end that was cut off holds
    # one command of theirs at most.
    if fault.forgets and len(forgotten) == 1:
        for task_id in forgotten[0].ids:
            unfinished.pop(task_id, None)
        result.explanations.append(f"1 x Redis forgot a {forgotten[0].kind}")


def count_repeats(events: list[dict[str, Any]], fault: Fault, result: Result) -> None:
    """Say of each further start of a task why it came."""
    by_task = defaultdict(list)
    for event in events:
        if event["event"] in ("start", "end"):
            by_task[event["id"]].append(event)
    reasons: dict[str, int] = defaultdict(int)
    for history in by_task.values():
        starts = [number for number, event in enumerate(history) if event["event"] == "start"]
        # A task that has rejected its message wants to run again.
        wanted = [number for number in starts[1:] if history[number - 1].get("state") == "REJECTED"]
        again = [number for number in starts[1:] if number not in wanted or history[number]["alive"]]
        result.repeated += bool(again)
        for number in again:
            states = [event["state"] for event in history[:number] if event["event"] == "end"]
            if history[number]["alive"]:
                result.overlapping += 1
                reasons["its first run still lived"] += 1
            elif "SUCCESS" not in states:
                reasons["its first run's process died" if not states else "it was retried"] += 1
            elif fault.forgets:
                result.forgotten += 1
                reasons["Redis forgot that it was done"] += 1
            else:
                result.unexplained += 1
                reasons["unexplained: it was done"] += 1
    result.explanations += [f"{count} x {reason}" for reason, count in reasons.items()]
