"""An environment for people: its settings, how two differ, and where a deployed one answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from stacks.settings import EnvironmentSettings


def described(settings: EnvironmentSettings) -> str:
    """Every setting, those with their default included, as JSON."""
    return json.dumps(settings.model_dump(mode="json"), indent=2, ensure_ascii=False)


def differences(one: EnvironmentSettings, other: EnvironmentSettings) -> list[tuple[str, str, str]]:
    """Where two environments differ: the setting's path, and its value in each as JSON; `-`: it has none."""
    here, there = dict(_leaves(one.model_dump(mode="json"))), dict(_leaves(other.model_dump(mode="json")))
    return [
        (path, here.get(path, "-"), there.get(path, "-"))
        for path in dict.fromkeys((*here, *there))
        if here.get(path) != there.get(path)
    ]


def urls(settings: EnvironmentSettings) -> list[tuple[str, str]]:
    """Where the environment answers, once it is deployed and its name leads to it."""
    domain = settings.edge.domain
    return [
        ("api", f"https://{domain}"),
        *((f"cell {cell}", f"wss://{domain}/ws/{cell}") for cell in settings.cells),
        ("region", f"{settings.region}, account {settings.account}"),
    ]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _leaves(each, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{path}[{each.get('slug', number)}]")
    else:
        yield path, json.dumps(value, ensure_ascii=False)
