"""What a check found: one line for people, with what to do where something is to be done."""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["ok", "warning", "failure"]


class Finding(msgspec.Struct, frozen=True):
    """`subject` is one of a fixed set, for scripts to look for; `advice` is empty where all is well."""

    subject: str
    state: State
    text: str
    advice: str = ""


def ok(subject: str, text: str) -> Finding:
    return Finding(subject, "ok", text)


def warning(subject: str, text: str, advice: str) -> Finding:
    """Works, and is not as it should be."""
    return Finding(subject, "warning", text, advice)


def failure(subject: str, text: str, advice: str) -> Finding:
    """Something does not work, or will be lost."""
    return Finding(subject, "failure", text, advice)
