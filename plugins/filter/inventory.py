"""What is wrong with an inventory by itself: names that nothing reads, and values that no file could carry.

The roles' own rules judge what a value means; these hold for every variable that an argument_specs.yml documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, lru_cache
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import yaml

# The largest number that every program here reads (systemd, Redis, HAProxy and Celery take 32 bits somewhere).
LARGEST = 2**31 - 1
# Seconds: ten years. systemd and Redis multiply them by 1000 or a million.
LONGEST = 10 * 366 * 24 * 3600
PORTS = (1, 65535)
# What is not 0 to LARGEST. Bounds that depend on other values are the roles' own rules.
BOUNDS: dict[str, tuple[int, int]] = {
    "api_graceful_stop_seconds": (1, 3600),
    "api_processes": (1, 256),
    "app_release_keep": (2, 1000),
    "broker_replicas_wanted": (0, 100),
    "celery_worker_concurrency": (1, 10000),
    "celery_worker_log_keep_days": (1, 36500),
    "celery_worker_task_time_limit": (1, LONGEST),
    "celery_worker_watchdog_seconds": (10, LONGEST),
    "container_worker_replicas": (0, 10000),
    "deploy_balancer_seconds": (0, 3600),
    "deploy_gate_seconds": (1, 86400),
    "flower_max_tasks": (1, 10**7),
    "hardening_ssh_max_auth_tries": (2, 1000),
    "max_body_bytes": (1, 2 * 10**8),
    "queue_max_length": (1, LARGEST),
    "redis_databases": (2, 1024),  # tasks are in the first, results in the second
    "redis_maxclients": (1, 65000),
    "redis_min_replicas_max_lag": (1, 3600),
    "redis_min_replicas_to_write": (0, 100),
    "redis_sentinel_down_after": (1, 3600),
    "redis_sentinel_failover_timeout": (1, 3600),
    "redis_sentinel_quorum": (1, 1000),
    "result_expires": (1, LONGEST),
    "task_soft_time_limit": (1, LONGEST),
    "task_time_limit": (1, LONGEST),
    "worker_max_tasks_per_child": (1, LARGEST),
    "worker_prefetch_multiplier": (1, 10000),
}
# Texts that become words of units, configurations and commands.
WORD = (r"[A-Za-z0-9_][A-Za-z0-9_.:/-]*", "letters, digits and . _ : / -")
NAME = (r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, dots, hyphens and underscores")
FORMS: dict[str, tuple[str, str]] = {
    "celery_worker_app": WORD,
    **dict.fromkeys(
        ("app_celery", "api_log_config", "api_http"),
        (f"({WORD[0]})?", WORD[1]),
    ),
    **dict.fromkeys(
        ("app_asgi", "app_wsgi", "api_app", "api_wsgi"),
        (rf"({WORD[0]}(\(\))?)?", f"{WORD[1]}, with () after the name of a factory"),
    ),
    **dict.fromkeys(
        (
            "app_health_path",
            "app_ready_path",
            "app_workers_path",
            "api_health_path",
            "api_ready_path",
            "load_balancer_ready_path",
        ),
        (r"(/[A-Za-z0-9._~/?=&%-]*)?", "a path like /healthz"),
    ),
    "app_environment": (r"[^'\\$]*", "without quotes, backslashes and dollar signs, because a settings file holds it"),
    "load_balancer_certificate_file": (r"(/[A-Za-z0-9._@+/-]+)?", "an absolute path of plain characters"),
    "load_balancer_virtual_ip_interface": (r"([A-Za-z0-9._@-]{1,15})?", "the name of a network interface"),
    "load_balancer_flower_url_prefix": (r"[A-Za-z0-9_-]+", "one word of letters, digits, hyphens and underscores"),
    "load_balancer_names": (r"[A-Za-z0-9*]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9a-fA-F:]+", "host names or addresses"),
    "hardening_disabled_modules": (r"[A-Za-z0-9_-]+", "names of kernel modules"),
    "monitoring_runbooks": (r"[!-~]*", "an address or a path without spaces"),
    "monitoring_username": NAME,
    "stack_redis_maxmemory": (
        r"(?i)[1-9][0-9]{0,14}(%|[kmg]?b?)",
        "a share of the host's memory like 25%, or a size like 2gb",
    ),
    "supabase_url": (r"(https?://[!-~]+)?", "an address like https://example.supabase.co"),
}
# Addresses on which something listens; with brackets around one of IPv6 where its role requires them.
ADDRESSES = ("flower_bind", "monitoring_bind", "exporters_bind")
IN_BRACKETS = ("api_bind", "load_balancer_bind", "load_balancer_status_bind")
# As Redis writes them: an optional one with a hyphen, * for all.
OF_REDIS = ("redis_bind", "redis_sentinel_bind")
# Parameters of the kernel and their values.
KERNEL = ("hardening_sysctl", "redis_sysctl")
# Redis' own limit.
MOST_REDIS_ADDRESSES = 16
# Hosts that a URL or a connection names.
HOSTS = ("redis_host", "redis_broker_host", "private_address")
# Folders on the controller, whose names the host never sees.
ON_CONTROLLER = re.compile(
    r"app_release_(source|requirements|cache|paths|libraries)|compose_containerfile|kubernetes_.*"
)
# Given with -e, where everything is a text; what reads them knows.
MAY_BE_TEXT = re.compile(r"(compose|kubernetes)_.*")
# Python statements, which may have several lines.
STATEMENTS = ("deploy_trial", "app_release_check")
# The role whose variables derive other roles' ones from what an inventory says.
SHARED = "stack"
# What each Redis instance of the platform has a value of its own for, so that the variable for all would be ignored.
OF_INSTANCES = {
    "redis_port": "leave it out; results are at 6379 and the queue is at 6380, or at 6379 with redis_topology shared",
    "redis_maxmemory": "set stack_redis_maxmemory",
    "redis_users": "leave it out; the platform's users are made from redis_user_passwords",
    "redis_default_user_rules": "leave it out, or set redis_disabled_commands",
    "redis_queues": "leave it out; the queues are those of task_routes and celery_worker_pools",
    "redis_previous_passwords": "leave it out; previous_secrets has them while they change",
}
# Variables that have another name now.
RENAMED = {
    "flower_earlier_passwords": "flower_previous_passwords",
    "load_balancer_floating_address": "load_balancer_virtual_ip",
    "load_balancer_floating_id": "load_balancer_virtual_ip_id",
    "load_balancer_floating_interface": "load_balancer_virtual_ip_interface",
    "load_balancer_floating_peers": "load_balancer_virtual_ip_peers",
    "load_balancer_floating_source": "load_balancer_virtual_ip_source",
    "monitoring_floating_address": "monitoring_virtual_ip",
    "redis_earlier_passwords": "redis_previous_passwords",
    "redis_sentinel_earlier_passwords": "redis_sentinel_previous_passwords",
}
# Where Celery puts a task without a route (celery_durable/queue_names.py).
DEFAULT_QUEUE = "celery"
# Keys that something else has in the broker (celery_durable/queue_names.py).
TAKEN_QUEUES = {"accepted", "alerts", "dead_letters", "failures", "figures", "workers", "revoked", "nodes", "queues"}
TAKEN_PREFIXES = (
    *("unacked", "deferred:", "idempotency:", "figures:", "app:", "_kombu.", "celeryev", "celery-task", "__sentinel__"),
    *("revoked:", "node:", "durable:"),
)
# Names that something else of the platform has, before it is there.
TAKEN = {
    *(
        "platform",
        "redis",
        "sentinel",
        "haproxy",
        "keepalived",
        "prometheus",
        "supervisor",
        "systemd",
        "journald",
        "ssh",
    ),
    *("root", "operator", "admin", "ops", "sudo", "adm", "user", "nftables", "hardening"),
}


@lru_cache
def specified(roles: str) -> dict[str, dict[str, Any]]:
    """Return each documented variable's option, of the roles in a folder."""
    options: dict[str, dict[str, Any]] = {}
    for file in sorted(Path(roles).glob("*/meta/argument_specs.yml")):
        for entry in yaml.load(file.read_text(), Loader=yaml.CSafeLoader)["argument_specs"].values():
            for name, option in entry.get("options", {}).items():
                options.setdefault(name, option)
    return options


@lru_cache
def mentioned(roles: str) -> set[str]:
    """Return all words of the roles and playbooks: what is not among them is read by nothing."""
    words: set[str] = set()
    for folder in (Path(roles), Path(roles).parent / "playbooks"):
        for pattern in ("*.yml", "*.j2"):
            for file in folder.rglob(pattern):
                words.update(re.findall(r"[a-z_][a-z0-9_]+", file.read_text()))
    return words


@lru_cache
def derived(roles: str) -> dict[str, str]:
    """Return the documented variables that role vars derive from others, with the file that does."""
    found: dict[str, str] = {}
    for file in sorted(Path(roles).glob(f"{SHARED}/vars/main/*.yml")):
        found |= dict.fromkeys(
            yaml.load(file.read_text(), Loader=yaml.CSafeLoader), f"roles/{SHARED}/vars/main/{file.name}"
        )
    return {name: file for name, file in found.items() if not name.startswith("__")}


def documented(variables: Iterable[str], roles: str) -> list[str]:
    """Return the names among ``variables`` that are documented, and not derived from others."""
    return sorted((specified(roles).keys() - derived(roles).keys()).intersection(variables))


def derived_names(variables: Iterable[str], roles: str) -> list[str]:
    """Return the names among ``variables`` that the role stack derives from others."""
    return sorted(derived(roles).keys() & set(variables))


@cache
def closest(name: str, roles: str, cutoff: float) -> list[str]:
    """Return the documented variable whose name is most like this one, if any is like it."""
    return get_close_matches(name, specified(roles), n=1, cutoff=cutoff)


def name_errors(variables: Iterable[str], roles: str) -> list[str]:
    """Say in one sentence each which names nothing reads although they look like the platform's."""
    known, words = specified(roles), mentioned(roles)
    prefixes = tuple(f"{path.name}_" for path in Path(roles).iterdir() if path.is_dir())
    errors = [
        f"The inventory sets {name}, which is called {RENAMED[name]} now: rename it."
        for name in sorted(RENAMED.keys() & set(variables))
    ]
    for name in sorted(set(variables) - known.keys() - words - RENAMED.keys()):
        close = closest(name, roles, 0.85)
        if close or name.startswith(prefixes):
            likely = close or closest(name, roles, 0.6)
            hint = (
                f": is {likely[0]} meant?" if likely else ": take it out, or give a variable of your own another name."
            )
            errors.append(f"The inventory sets {name}, which nothing reads{hint}")
    return errors


def ignored_errors(variables: Iterable[str]) -> list[str]:
    """Say in one sentence each which variables the platform's own Redis instances would ignore."""
    return [
        f"The inventory sets {name}, but each Redis instance of the platform has its own: {remedy}."
        for name, remedy in OF_INSTANCES.items()
        if name in variables
    ]


def app_name_errors(name: Any, login: str) -> list[str]:
    """Say in one sentence why an application may not have this name; ``login`` is whom Ansible comes as."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,22}[a-z0-9]", name):
        rule = "2 to 24 lower-case letters, digits and hyphens and begin with a letter"
        reason = "users, directories and units are named after it"
        return [f"app_name is {_plain(name)!r}, but it must be {rule}, because {reason}."]
    if name in {*TAKEN, login} or name.startswith(("redis-", "platform-", "prometheus-", "systemd-")):
        return [f"app_name is '{name}', but users, units or tables of the host have that name: choose another one."]
    return []


def follower_errors(values: Mapping[str, Any], app_name: object) -> list[str]:
    """Say in one sentence each which names and places differ from those that all parts derive from ``app_name``."""
    app_name = str(app_name)
    named = ("platform_tools", "app_release", "api", "flower", "celery_worker", "celery_beat")
    wanted = dict.fromkeys((f"{role}_name" for role in named), app_name)
    wanted |= dict.fromkeys(
        ("celery_worker_user", "celery_worker_group", "celery_beat_user", "celery_beat_group"), app_name
    )
    wanted |= {"platform_tools_directory": f"/opt/{app_name}/platform"}
    wanted |= {"app_release_root": f"/opt/{app_name}", "app_release_config_directory": f"/etc/{app_name}"}
    for role, part in (("celery_worker", "worker"), ("celery_beat", "worker"), ("api", "api"), ("flower", "flower")):
        wanted |= {f"{role}_directory": f"/opt/{app_name}/{'platform' if role == 'flower' else 'backend'}"}
        wanted |= {f"{role}_secrets_directory": f"/etc/{app_name}/secrets/{part}"}
        if role == part:
            wanted |= dict.fromkeys((f"{role}_user", f"{role}_group"), f"{app_name}-{role}")
    return [
        f"{name} is '{values[name]}', but all parts of the platform take '{place}' from app_name: leave it out."
        for name, place in wanted.items()
        if name in values and str(values[name]) != place
    ]


def absent_addresses(values: Mapping[str, Any], own: list[str]) -> list[str]:
    """Say in one sentence each at which addresses a service is to listen that are none of this host's ``own``.

    Addresses that Redis may do without (with a hyphen) are left to it; a balancer may wait for a virtual one.
    """
    mine = {ip_address(address) for address in own}
    given = [
        (name, str(entry).removeprefix("[").removesuffix("]"))
        for name in (*ADDRESSES, "api_bind", *OF_REDIS)
        for entry in (values.get(name, []) if isinstance(values.get(name, []), list) else [values[name]])
    ]
    return [
        f"{name} has the address {address}, which is none of this host's ({', '.join(own)}): correct it."
        for name, address in given
        if mine and _is_address(address) and not _is_everywhere(address) and ip_address(address) not in mine
    ]


def _is_everywhere(address: str) -> bool:
    return ip_address(address).is_loopback or ip_address(address).is_unspecified


def differing(names: list[str], here: list[Any], given: list[Any]) -> list[str]:
    """Return the names whose value here is not the one that was given."""
    return [name for name, mine, theirs in zip(names, here, given, strict=True) if mine != theirs]


def value_errors(values: Mapping[str, Any], roles: str) -> list[str]:
    """Say in one sentence each what is wrong with values of documented variables, whatever they mean."""
    options = specified(roles)
    return [sentence for name, value in values.items() for sentence in _errors(name, value, options[name])]


def _errors(name: str, value: Any, option: Mapping[str, Any]) -> Iterator[str]:
    kind = option["type"]
    shown = "not shown" if option.get("no_log") else repr(_plain(value))
    if kind == "list" and isinstance(value, str):
        example = "" if option.get("no_log") else f", like [{value}]"
        yield f"{name} is the text {shown}, but must be a list{example}."
    elif kind == "list":
        if not isinstance(value, list | tuple):
            yield f"{name} is {shown}, but it must be a list."
        elif name.endswith("_ip_allow") and not value:
            yield f"{name} is empty, but it must be a list of IP addresses, networks like 10.0.0.0/8, localhost or any."
        elif option.get("elements") in ("str", "int"):
            for each in value:
                yield from _errors(name, each, {**option, "type": option["elements"]})
            if name in OF_REDIS:
                yield from _bind_errors(name, [str(each) for each in value])
    elif kind == "dict":
        yield from _mapping_errors(name, value, shown)
    elif kind == "bool" and not isinstance(value, bool) and not MAY_BE_TEXT.fullmatch(name):
        yield f"{name} is {shown}, but it must be true or false, without quotes, and with -e as JSON."
    elif kind == "float" and isinstance(value, bool):
        yield f"{name} is {shown}, but it must be a number."
    elif kind == "int":
        yield from _number_errors(name, value, shown)
    elif kind in ("str", "path"):
        yield from _text_errors(name, value, kind, shown)


def _number_errors(name: str, value: Any, shown: str) -> Iterator[str]:
    least, most = PORTS if name.endswith(("_port", "_ports")) else BOUNDS.get(name, (0, LARGEST))
    if isinstance(value, bool) or not re.fullmatch(r"-?(0|[1-9][0-9]{0,29})", str(value)):
        yield f"{name} is {shown}, but it must be a whole number (int)."
    elif (least, most) == PORTS and not least <= int(value) <= most:
        yield f"{name} is {value}, but a port is a number from {least} to {most}."
    elif int(value) < least:
        yield f"{name} is {value}, but it must be at least {least}."
    elif int(value) > most:
        yield f"{name} is {value}, but it must be at most {most}."


def _text_errors(name: str, value: Any, kind: str, shown: str) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple) or value is None:
        yield f"{name} is {shown}, but it must be a text."
        return
    text = str(value)
    pattern, rule = FORMS.get(name, (None, ""))
    if name not in STATEMENTS and re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", _without_pem(text)):
        yield f"{name} holds a line break or another control character ({shown}), but it must be one line of text."
    elif pattern is not None and not re.fullmatch(pattern, text):
        yield f"{name} is {shown}, but it must be {rule}."
    elif kind == "path" and not ON_CONTROLLER.fullmatch(name) and not _is_plain_path(text):
        yield f"{name} is {shown}, but it must be an absolute path of letters, digits and . _ @ + -, without '..'."
    elif name in IN_BRACKETS and not _is_address_in_brackets(text):
        yield f"{name} is {shown}, but it must be an IP address of the host, one of IPv6 in square brackets."
    elif name in OF_REDIS and not re.fullmatch(r"-?(::)?[*]", text) and not is_host(text.removeprefix("-")):
        yield f"{name} is {shown}, but it must be made of addresses like 127.0.0.1, -::1 or *."
    elif name.endswith("_ip_allow") and text not in ("any", "localhost") and not _is_network(text):
        rule = "IP addresses, networks like 10.0.0.0/8, localhost or any"
        yield f"{name} has {shown}, but it must be a list of {rule}, because a packet filter knows no names."
    elif name == "load_balancer_virtual_ip" and text and not _is_interface(text):
        yield f"{name} is {shown}, but it must be an IPv4 address with its prefix, like 10.0.0.10/24."
    elif name in ADDRESSES and not _is_address(text):
        yield f"{name} is {shown}, but it must be an IP address."
    elif name in HOSTS and not is_host(text):
        yield f"{name} is {shown}, but it must be a host name or an IP address, without brackets and port."


def _mapping_errors(name: str, value: Any, shown: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{name} is {shown}, but it must be a mapping."
    elif name in KERNEL:
        for parameter, setting in value.items():
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./*-]*", str(parameter)):
                yield f"{name} has {_plain(parameter)!r}, but a kernel's parameter is named like net.ipv4.ip_forward."
            elif (
                isinstance(setting, bool)
                or not isinstance(setting, int | str)
                or not re.fullmatch(r"[!-~]+([ \t]+[!-~]+)*", str(setting))
            ):
                rule = "a number, or a text like '1024 65000'"
                yield f"{name} gives {parameter} the value {_plain(setting)!r}, but it must be {rule}."


def _bind_errors(name: str, entries: list[str]) -> Iterator[str]:
    """Say what Redis would not start with: it opens each entry by itself, an optional one too."""
    if len(entries) > MOST_REDIS_ADDRESSES:
        yield f"{name} has {len(entries)} addresses, but Redis takes at most {MOST_REDIS_ADDRESSES}."
    everything = {"*": "0.0.0.0", "::*": "::", "localhost": "127.0.0.1"}  # noqa: S104 - names of what is compared
    bare = [everything.get(entry.removeprefix("-"), entry.removeprefix("-")) for entry in entries]
    parsed = [ip_address(entry) for entry in bare if _is_address(entry)]
    for address in parsed:
        same = [other for other in parsed if other.version == address.version]
        if same.count(address) > 1 or (address.is_unspecified and len(same) > 1):
            rule = "each address may be there once, and none beside one that stands for all of its kind"
            yield f"{name} is {entries!r}, but {rule}: Redis would open the same port twice, and not start."
            return


def is_bound(entries: Iterable[str], host: str) -> bool:
    """Return whether a Redis that listens on these addresses is reachable at ``host``, one of this machine's."""
    names = {"localhost", "127.0.0.1", "::1"} if host == "localhost" else {host}
    names |= {"localhost"} if host in ("127.0.0.1", "::1") else set()
    every = {"::*", "::"} if ":" in host else {"*", "0.0.0.0"}  # noqa: S104 - what stands for all addresses
    return not {str(entry).removeprefix("-") for entry in entries}.isdisjoint(names | every)


def _without_pem(text: str) -> str:
    return "" if "-----BEGIN " in text else text


def _is_plain_path(text: str) -> bool:
    return re.fullmatch(r"(/[A-Za-z0-9._@+-]+)+", text) is not None and not {".", ".."} & set(text.split("/"))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _is_address_in_brackets(text: str) -> bool:
    bare = text.removeprefix("[").removesuffix("]")
    return _is_address(bare) and (text == f"[{bare}]" if ":" in bare else text == bare)


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    # A bare number is an address to Python only when it is one in text, and systemd knows no zones.
    return ("." in text or ":" in text) and "%" not in text


def _is_interface(text: str) -> bool:
    try:
        return "/" in text and ip_interface(text).version == 4
    except ValueError:
        return False


def is_host(text: str) -> bool:
    """Return whether ``text`` is an IP address or a host name (RFC 1123), as a URL names a host."""
    label = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
    name = len(text) <= 253 and re.fullmatch(rf"{label}([.]{label})*[.]?", text) is not None
    # What looks like an address must be one.
    return _is_address(text) or (name and not re.fullmatch(r"[0-9.]+", text))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


def route_queues(routes: Mapping[str, Any]) -> list[Any]:
    """Return the queue of each route, in both of Celery's forms: a name, or ``{queue: name}``."""
    return [
        route["queue"] if isinstance(route, Mapping) and set(route) == {"queue"} else route for route in routes.values()
    ]


def queue_of_task(routes: Mapping[str, Any], task: str, default_queue: Any = DEFAULT_QUEUE) -> Any:
    """Return the queue of a task by Celery's rule: its own route, else the first pattern that its name begins with."""
    queues = dict(zip(routes, route_queues(routes), strict=True))
    if task in queues:
        return queues[task]
    patterns = {re.escape(pattern).replace(r"\*", ".+?"): queue for pattern, queue in queues.items() if "*" in pattern}
    return next((queue for pattern, queue in patterns.items() if re.match(pattern, task)), default_queue)


def is_queue_name(name: object) -> bool:
    """Return whether a queue may have this name (celery_durable/queue_names.py)."""
    return (
        isinstance(name, str)
        and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}", name) is not None
        and name not in TAKEN_QUEUES
        and not name.startswith(TAKEN_PREFIXES)
        and not name.endswith(".pidbox")
    )


def queue_errors(
    routes: Mapping[str, Any],
    pools: Iterable[Mapping[str, Any]],
    queues: Sequence[Any] = (DEFAULT_QUEUE,),
    default_queue: Any = DEFAULT_QUEUE,
) -> list[str]:
    """Say in one sentence each what is wrong with queues: their names, and tasks that no pool takes.

    Args:
        routes: task_routes.
        pools: celery_worker_pools of all hosts that serve this host's queues; none where workers are elsewhere.
        queues: app_queues, which a pool takes from that names none.
        default_queue: app_default_queue, where tasks without a route wait.
    """
    errors = []
    taken = _queues(pools, queues)
    sources = {
        "app_default_queue": [default_queue],
        "app_queues": queues,
        "task_routes": route_queues(routes),
        "celery_worker_pools": taken,
    }
    for variable, names in sources.items():
        if wrong := [name for name in names if not is_queue_name(name)]:
            errors.append(
                f"{variable} names the queue {_plain(wrong[0])!r}, but a queue's name must be up to 100 letters, digits"
                " and _ . : -, and none that the platform or Celery uses."
            )
    for variable, names in (("task_routes", route_queues(routes)), ("app_queues", queues)):
        if taken and (idle := [name for name in names if name not in taken and name != default_queue]):
            errors.append(
                f"{variable} sends tasks to the queue '{idle[0]}', but no pool takes from it: name it in the queues of"
                " one of celery_worker_pools."
            )
    if taken and default_queue not in taken and "*" not in routes:
        errors.append(
            f"No pool of celery_worker_pools takes from the queue '{default_queue}', where each task waits that"
            " task_routes sends nowhere else: name it in the queues of one of them."
        )
    return errors


def previous_errors(previous: Mapping[str, Any]) -> list[str]:
    """Say in one sentence each which of ``previous_secrets`` is no secret: it opens a door, or keeps a program down."""
    errors = []
    users = previous.get("redis_user_passwords", {})
    if not isinstance(users, Mapping):
        errors.append("previous_secrets.redis_user_passwords must map users to their previous passwords.")
        users = {}
    values = {name: value for name, value in previous.items() if name != "redis_user_passwords"}
    values |= {f"redis_user_passwords.{user}": value for user, value in users.items()}
    for name, value in values.items():
        if name == "metrics_api_key" and value == "":  # there was none
            continue
        least = 32 if name.endswith("_signing_key") else 16
        kind = r"[A-Za-z0-9_.~-]*" if name.endswith("_key") else r"[!-~]*"
        if not isinstance(value, str) or not re.fullmatch(kind, value) or len(value) < least or len(set(value)) < 8:
            errors.append(
                f"previous_secrets.{name} was never accepted (its value is not shown): it must be a text of at least"
                f" {least} characters, 8 different ones among them, as {name} itself; leave it out when there was none."
            )
    return errors


def _queues(pools: Iterable[Any], otherwise: Sequence[Any]) -> list[Any]:
    lists = [pool.get("queues", otherwise) for pool in pools if isinstance(pool, Mapping)]
    return [name for names in lists if isinstance(names, list | tuple) for name in names]


class FilterModule:
    """Ansible's filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return them by name."""
        return {
            "app_name_errors": app_name_errors,
            "differing": differing,
            "absent_addresses": absent_addresses,
            "follower_errors": follower_errors,
            "previous_errors": previous_errors,
            "ignored_errors": ignored_errors,
            "derived_names": derived_names,
            "documented": documented,
            "queue_of_task": queue_of_task,
            "queue_errors": queue_errors,
            "route_queues": route_queues,
            "is_bound": is_bound,
            "name_errors": name_errors,
            "value_errors": value_errors,
        }
