"""A synthesized cloud assembly, as the tests of the stacks look at it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Assembly:
    """The templates of one environment, by the part of the stack's name behind `CloudSync-{env}-`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.templates: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.folders: dict[str, Path] = {}
        for manifest in sorted(folder.glob("assembly-*/manifest.json")):
            artifacts = json.loads(manifest.read_text())["artifacts"]
            for artifact in artifacts.values():
                if artifact["type"] != "aws:cloudformation:stack":
                    continue
                name = artifact["properties"]["stackName"].split("-", 2)[2].removeprefix("after-")
                path = manifest.parent / artifact["properties"]["templateFile"]
                self.templates[name] = json.loads(path.read_text())
                self.artifacts[name] = artifact
                self.folders[name] = manifest.parent

    def resources(self, of_type: str, *, stack: str | None = None) -> Iterator[dict[str, Any]]:
        """Every resource of a type, with its `LogicalId` and `Stack` added."""
        for name, template in self.templates.items():
            if stack in (None, name):
                for logical_id, resource in template.get("Resources", {}).items():
                    if resource["Type"] == of_type:
                        yield {**resource, "LogicalId": logical_id, "Stack": name}

    def one(self, of_type: str, *, stack: str | None = None) -> dict[str, Any]:
        """The only resource of a type."""
        (found,) = self.resources(of_type, stack=stack)
        return found
