"""The environments, as data: one module each, with one literal `SETTINGS`."""

from __future__ import annotations

import importlib
import json
import pkgutil

from pydantic import ValidationError

from stacks.settings import EnvironmentSettings


class EnvironmentRefused(Exception):
    """There is no such environment, or its settings contradict themselves. The message says what to do."""


def names() -> list[str]:
    """Every environment that there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def name_of_context(context_json: str | None) -> str:
    """The name given with `-c env=NAME`. Raises EnvironmentRefused if there is none."""
    name = json.loads(context_json or "{}").get("env")
    if not name:
        raise EnvironmentRefused(
            f"Say which environment: -c env=NAME, or python app.py NAME; there are {', '.join(names())}."
        )
    return str(name)


def load(name: str) -> EnvironmentSettings:
    """The settings of an environment. Raises EnvironmentRefused with a sentence for each problem."""
    if name not in names():
        raise EnvironmentRefused(
            f"There is no environment {name!r}; there are {', '.join(names())}."
            " A new one is a file in stacks/environments/."
        )
    try:
        settings = importlib.import_module(f"{__name__}.{name}").SETTINGS
    except ValidationError as error:
        raise EnvironmentRefused(f"The environment {name}: {sentences(error)}") from None
    if not isinstance(settings, EnvironmentSettings) or settings.name != name:
        raise EnvironmentRefused(f"stacks/environments/{name}.py must hold SETTINGS with the name {name!r}.")
    return settings


def sentences(error: ValidationError) -> str:
    """What pydantic found, as sentences that name the field."""
    found = []
    for each in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in each["loc"])
        text = each["msg"].removeprefix("Value error, ").rstrip(".")
        found.append(f"{where}: {text}." if where else f"{text}.")
    return " ".join(found)
