#!/usr/bin/env python3
"""Write docs/reference/variables.md: scripts/variables_page.py [--check]."""

import sys
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, nodes

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reference/variables.md"
# In the order in which the roles meet a host.
ROLES = [
    "stack",
    "logs",
    "hardening",
    "firewall",
    "redis",
    "redis_sentinel",
    "platform_tools",
    "app_release",
    "celery_worker",
    "celery_beat",
    "api",
    "console",
    "flower",
    "compose",
    "load_balancer",
    "exporters",
    "monitoring",
    "kubernetes",
]
HEADER = """\
# Variables

Generated from each role's `meta/argument_specs.yml` and `defaults/main.yml` by `scripts/variables_page.py`.
Preflight rejects a wrong value before it changes any host. Set variables in `inventories/<name>/group_vars/all/`.
If the table names a file, that file derives the value from other variables; set those instead.
"""
# What these say of other roles' variables is for containers only.
FOR_ONE_ROLE = {"containers.yml": "compose", "kubernetes.yml": "kubernetes"}


def text(description: str | list[str]) -> str:
    """Return a description as one line that a table cell can hold."""
    lines = description if isinstance(description, list) else [description]
    return " ".join(lines).replace("|", "\\|")


def type_of(option: dict[str, Any]) -> str:
    """Return an option's type as a reader says it."""
    if "choices" in option:
        return " \\| ".join(f"`{choice}`" for choice in option["choices"])
    kind = str(option.get("type", "str"))
    return f"{kind} of {option['elements']}" if "elements" in option else kind


def named_in(value: Any) -> set[str]:
    """Return the variables that the expressions in a value name."""
    if isinstance(value, str):
        tree = Environment(autoescape=True).parse(value)
        return {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {name for part in parts for name in named_in(part)}


def default_of(name: str, option: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Return an option's default: its value, an expression, or that there is none."""
    if option.get("required"):
        return "**required**"
    value = defaults.get(name, option.get("default"))
    if value is None:
        return ""
    shown = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    if "{{" in shown:
        others = sorted(named_in(value) - {name, "inventory_hostname"})
        return "follows " + ", ".join(f"`{other}`" for other in others) if others else "computed"
    return "`" + shown.replace("|", "\\|") + "`"


def derived(role: str) -> dict[str, str]:
    """Return the role's variables that the playbooks derive from others, with the file that does."""
    result: dict[str, str] = {}
    for file in sorted([*ROOT.glob("playbooks/vars/*.yml"), *ROOT.glob("roles/stack/vars/main/*.yml")]):
        if FOR_ONE_ROLE.get(file.name, role) == role:
            result |= dict.fromkeys(yaml.safe_load(file.read_text()), str(file.relative_to(ROOT)))
    return result


def rows(
    options: dict[str, Any], defaults: dict[str, Any], derived: dict[str, str] | None = None, prefix: str = ""
) -> list[str]:
    """Return one table row per option, those of list entries below their list."""
    result = []
    for name, option in options.items():
        meaning = text(option["description"])
        if derived and name in derived:
            meaning += f" (`{derived[name]}`)"
        cells = [f"`{prefix}{name}`", type_of(option), default_of(name, option, defaults), meaning]
        result.append("| " + " | ".join(cells) + " |")
        result += rows(option.get("options", {}), {}, prefix=f"{prefix}{name}[].")
    return result


def page() -> str:
    """Return the whole page."""
    if missing := {path.parent.name for path in ROOT.glob("roles/*/meta")} - set(ROLES):
        sys.exit(f"ROLES lacks {', '.join(sorted(missing))}")
    parts = [HEADER]
    for role in ROLES:
        specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
        entry = specs.get("main") or specs["preflight"]
        defaults = yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text())
        parts.append(f"\n## {role}\n\n{text(entry['short_description'])}.\n\n{text(entry.get('description', ''))}\n\n")
        parts.append("| Variable | Type | Default | Meaning |\n| --- | --- | --- | --- |\n")
        parts.append("\n".join(rows(entry["options"], defaults, derived(role))) + "\n")
    return "".join(parts)


def main() -> None:
    """Write the page, or with --check exit with 1 when it is not current."""
    if "--check" in sys.argv[1:]:
        if PAGE.read_text() != page():
            sys.exit("docs/reference/variables.md is not current: run scripts/variables_page.py")
    else:
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
