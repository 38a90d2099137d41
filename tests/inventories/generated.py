"""Inventories made from the argument specs: each option with values of its type, their neighbours and hostile ones."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support import REPOSITORY, load_plugin

inventory = load_plugin("plugins/filter/inventory.py")
ROLES = str(REPOSITORY / "roles")
# What a host of the shape gets.
PLAIN = ("stack", "redis", "app_release", "celery_worker", "api", "flower", "logs", "hardening", "firewall")
CLUSTER = (*PLAIN, "monitoring", "exporters", "load_balancer")
REPLICATED = (*CLUSTER, "redis_sentinel")
# One host's pools and address are the other hosts' concern: tests/contract/test_queue_names.py judges the first.
LEFT_OUT = {"celery_worker_pools", "private_address"}

TEXTS = (
    *(
        "",
        " ",
        "plain",
        "a b",
        'a"b',
        "a'b",
        "a\nb",
        "a\tb",
        "a\\b",
        "a%b",
        "%h",
        "%n",
        "$HOME",
        "${X}",
        "a#b",
        "a;b",
        "a,b",
    ),
    *(
        "-x",
        "--help",
        "a=b",
        "a:b",
        "{a}",
        "[a]",
        "*",
        "~",
        "é",
        "日本",
        "\u2028",
        "\x7f",
        "x" * 300,
        "null",
        "yes",
        "1",
        "1.5",
    ),
    *(
        "../x",
        "/",
        "<x>",
        "a&b",
        "`id`",
        "$(id)",
        "a|b",
        "1%",
        "101%",
        "0%",
        "0M",
        "512M",
        "1e9",
        "0x10",
        "010",
        "\u0661",
    ),
)
ADDRESSES = (
    *("127.0.0.1", "127.0.0.2", "::1", "[::1]", "0.0.0.0", "::", "10.0.0.5", "10.0.0.5:6379", "10.0.0", "10.0.0.256"),  # noqa: S104
    *(
        "fd00::7",
        "[fd00::7]",
        "fe80::1%eth0",
        "localhost",
        "redis.internal",
        "redis_1",
        "-redis",
        "a..b",
        "http://redis",
    ),
    *("10.0.0.0/8", "10.0.0.5/8", "::/0", "any", "*"),
)
PATHS = (
    "",
    "/",
    "/srv/app",
    "/opt/typesafe",
    "/opt/a b",
    "/opt/%h",
    "/opt/../etc",
    "relative/x",
    "/opt/é",
    "/x\ny",
    "~",
    "/opt/x/",
)
NUMBERS = (
    -1,
    0,
    1,
    2,
    7,
    10,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**63,
    10**25,
    "12",
    " 12",
    "x",
    "",
    1.5,
    "1.5",
    True,
    None,
    [1],
    "0x10",
)
OTHER_TYPES: tuple[Any, ...] = (None, [], {}, ["a"], {"a": "b"}, 5, True)


@cache
def defaults(role: str) -> dict[str, Any]:
    """Return a role's defaults."""
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / "roles" / role / "defaults/main.yml").read_text())
    return loaded


def options(roles: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return every documented option of the roles that an inventory may set."""
    found: dict[str, dict[str, Any]] = {}
    for role in roles:
        specs = yaml.safe_load((Path(ROLES) / role / "meta/argument_specs.yml").read_text())["argument_specs"]
        found |= {
            name: option
            for name, option in (specs.get("main") or specs["preflight"])["options"].items()
            if name not in found
        }
    return {name: option for name, option in found.items() if name not in LEFT_OUT}


def values(name: str, option: dict[str, Any], role_defaults: Any = None) -> list[Any]:  # noqa: PLR0911 - one of each type
    """Return what is tried for an option: right values, wrong ones, and those at the border."""
    kind = option["type"]
    if "choices" in option:
        return [*option["choices"], option["choices"][0] + "x", "", option["choices"][0].upper(), *OTHER_TYPES]
    if kind == "bool":
        return [True, False, "yes", "no", "true", "maybe", 2, "", None, [True]]
    if kind == "int":
        least, most = inventory.PORTS if name.endswith("_port") else inventory.BOUNDS.get(name, (0, inventory.LARGEST))
        return [least - 1, least, least + 1, most - 1, most, most + 1, *NUMBERS]
    if kind == "float":
        return [-1, 0, 0.0001, 0.5, 1, 1.0001, 80, "0.5", "nan", "inf", "x", "", None, True]
    if kind == "path":
        return [*PATHS, *OTHER_TYPES]
    if kind == "list" and option.get("elements") == "str":
        return ["10.0.0.5", "a", "", [], {}, 5, [""], [5], [None], [["a"]], *([text] for text in (*TEXTS, *ADDRESSES))]
    if kind == "list":
        return [
            "text",
            {},
            5,
            [],
            ["a"],
            [{}],
            [{"name": "x"}],
            [{"name": "a b", "port": 1}],
            [{"name": "x", "port": 70000}],
        ]
    if kind == "dict":
        return ["text", [], 5, None, {}, {"a": "b"}, {"A B": "x"}, {"x.y": "1"}, {"kernel.x": "a b"}, {"a": [1]}]
    found = [*TEXTS, *OTHER_TYPES]
    if re.search(r"host|bind|address", name):
        found += ADDRESSES
    if name.endswith(("password", "_key")):
        found += [
            "k3P9zQab" * 2,
            "k3P9zQab" * 9,
            "k3P9zQab" * 9 + "x",
            "k3P9zQab" * 50,
            "a" * 40,
            "k3P9zQab" * 4 + "é",
            "k3P9zQab:/@#?%&=" * 3,
        ]
    if name == "app_name":
        found += [
            "x",
            "ab",
            "a-b",
            "x" * 24,
            "x" * 25,
            "platform",
            "ops",
            "redis",
            "root",
            "daemon",
            "www-data",
            "deployer",
            "apt",
            "man",
            "A",
            "a_b",
            "a-",
            "ssh",
            "default",
        ]
    if role_defaults is not None and isinstance(role_defaults, str) and "{{" not in role_defaults:
        found += [role_defaults, role_defaults + " ", role_defaults + "x", role_defaults + "\n"]
    return found


def all_defaults(roles: tuple[str, ...]) -> dict[str, Any]:
    """Return the defaults of all of them."""
    found: dict[str, Any] = {}
    for role in roles:
        found |= defaults(role)
    return found


def misspelled(name: str, chance: random.Random) -> str:
    """Return a documented name with a typing error."""
    at = chance.randrange(1, len(name) - 1)
    return chance.choice(
        (name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:], name + "s", name.replace("_", "", 1))
    )


def every_value(roles: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return an inventory for each value of each option."""
    usual = all_defaults(roles)
    return [{name: value} for name, option in options(roles).items() for value in values(name, option, usual.get(name))]


def form_errors(variables: dict[str, Any]) -> list[str]:
    """Return what the preflight's first rule says: names and forms, whatever the values mean."""
    known = {name: value for name, value in variables.items() if name in inventory.documented(variables, ROLES)}
    errors: list[str] = [
        *inventory.name_errors(variables, ROLES),
        *inventory.ignored_errors(variables),
        *inventory.app_name_errors(variables.get("app_name", "typesafe"), "deployer"),
        *inventory.value_errors(known, ROLES),
        *inventory.follower_errors(known, variables.get("app_name", "typesafe")),
    ]
    return errors[:1]


@cache
def by_option(roles: tuple[str, ...], *, formed: bool) -> dict[str, list[dict[str, Any]]]:
    """Return the inventories for each option; with ``formed`` only those that Ansible has to judge."""
    found: dict[str, list[dict[str, Any]]] = {}
    for case in every_value(roles):
        if not (formed and form_errors(case)):
            (name,) = case
            found.setdefault(name, []).append(case)
    return found


def cases(roles: tuple[str, ...], number: int, chance: random.Random) -> dict[str, dict[str, Any]]:
    """Return so many inventories, by their names: mostly one or two values of a right form, and some of a wrong one."""

    def pick(*, formed: bool) -> dict[str, Any]:
        choices = by_option(roles, formed=formed)
        return chance.choice(choices[chance.choice(sorted(choices))])

    found: dict[str, dict[str, Any]] = {}
    for index in range(number):
        case = dict(pick(formed=True))
        if chance.random() < 0.4:
            case |= pick(formed=True)
        if chance.random() < 0.1:
            case |= pick(formed=False)
        found[f"case-{index}"] = case
    return found


def set_in(file: Path) -> list[tuple[str, Any]]:
    """Return the variables that a file of an inventory, or a scenario's hosts, set, with their values."""

    def of(value: Any) -> list[tuple[str, Any]]:
        if isinstance(value, dict):
            inner = (each for name, each in value.items() if name not in OF_ITS_OWN_NAMES)
            return [*value.items(), *(pair for each in inner for pair in of(each))]
        return [pair for each in value for pair in of(each)] if isinstance(value, list) else []

    loaded = yaml.load(file.read_text(), Loader=Loose)  # noqa: S506 - a safe one
    if file.name == "molecule.yml":
        found = loaded.get("provisioner", {}).get("inventory", {})
        return of([found.get("group_vars"), found.get("host_vars")])
    return of(loaded)


# Their keys are names that an inventory chooses.
OF_ITS_OWN_NAMES = ("app_secrets", "app_settings", "app_redis_variables", "app_release_shared")


class Loose(yaml.SafeLoader):
    """Reads Ansible's own tags as nothing."""


Loose.add_multi_constructor("!", lambda loader, suffix, node: None)  # noqa: ARG005 - PyYAML's signature
