"""Frames with row data, spliced from JSON text.

A row travels as PostgreSQL wrote it: it is never parsed into numbers on its way to a client. What belongs
to the event is encoded once and shared by all connections; what belongs to a connection (`n`, `sub`) goes
in front.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, Literal

import msgspec

from cloudsync.events import (
    CREATE,
    DELETE,
    MATCHED_BEFORE,
    MATCHES_NOW,
    ONLY_LOSING,
    ChangeEvent,
)
from cloudsync.rows import columns_of

Verdict = Literal["create", "update", "delete"]

_BOTH: Final = MATCHED_BEFORE | MATCHES_NOW
_OPENINGS: Final[dict[Verdict, str]] = {
    "create": '{"type":"data.create",',
    "update": '{"type":"data.update",',
    "delete": '{"type":"data.delete",',
}


class _Actor(msgspec.Struct):
    at: str | None = None


class _TextChange(msgspec.Struct):
    """What `text_op` says of a column; see `change_log.text_op`."""

    op: msgspec.Raw = msgspec.Raw()
    whole: bool = False
    cut: bool = False


_actor = msgspec.json.Decoder(_Actor).decode
_text_changes = msgspec.json.Decoder(dict[str, _TextChange]).decode
_names = msgspec.json.Decoder(list[str]).decode


class Body(msgspec.Struct, gc=False, frozen=True):
    """The shared part of one frame: what follows the connection's own fields."""

    opening: str
    text: str
    size_bytes: int
    timed: bool = True
    events: int = 1

    def frame(self, n: int, sub: str) -> str:
        """The whole frame for one connection; `sub` is the subscription's id as JSON."""
        if self.timed:
            return f'{self.opening}"n":{n},"sub":[{sub}],"sent":{time.time_ns() // 1000},{self.text}'
        return f'{self.opening}"n":{n},"sub":[{sub}],{self.text}'


def verdict_for(event: ChangeEvent, bits: int, user: str) -> Verdict | None:
    """What the event is to this user: filter and audience, before and now."""
    before = bool(bits & MATCHED_BEFORE) and _holds(event.old_audience, user)
    now = bool(bits & MATCHES_NOW) and _holds(event.audience, user)
    return shared_verdict(before, now, bits)


def shared_verdict(before: bool, now: bool, bits: int = 0) -> Verdict | None:
    """What an event is to somebody who saw the row before, or sees it now; None: not told here."""
    if bits > _BOTH and bool(bits & ONLY_LOSING) is now:
        return None
    if now:
        return "update" if before else "create"
    return "delete" if before else None


def for_everyone(event: ChangeEvent) -> bool:
    """Whether the whole tenant may see the row, before (if there was one) and after (if there is one)."""
    return (event.op == DELETE or event.audience is None) and (
        event.op == CREATE or event.old_audience is None
    )


def event_text(event: ChangeEvent, verdict: Verdict, columns: tuple[str, ...] | None) -> str:
    """An event's fields, without the frame's opening and its closing brace."""
    key = (event.key or b"null").decode()
    head = f'"table":{_name(event.table)},"key":{key},"version":{event.version}'
    if verdict == "delete" or event.row is None:
        return head
    texts = _texts(event, columns) if event.text_op else {}
    if verdict == "create":
        row = event.row.decode() if columns is None else _project(event.row, columns)
        return f'{head},"row":{row}{revisions_text(texts, event.version)}{_origin(event)}'
    changed = _names(event.old) if event.old else []
    if columns is not None:
        changed = [name for name in changed if name in columns]
    text = ""
    if texts:
        operations = {name: each.op for name, each in texts.items() if bytes(each.op)}
        changed = [name for name in changed if name not in operations or texts[name].whole]
        text = _operations_text(operations, event.version) if operations else ""
    changes = _project(event.row, changed) if changed else "{}"
    return f'{head},"prev_version":{event.version - 1},"changes":{changes}{text}{_origin(event)}'


def told_as(event: ChangeEvent, verdict: Verdict, columns: tuple[str, ...] | None) -> Verdict:
    """The verdict as it can be told: of a row that the log holds cut, only what has changed.

    Whoever does not hold the version before asks for the row as a whole.
    """
    if verdict == "create" and event.text_op and any(each.cut for each in _texts(event, columns).values()):
        return "update"
    return verdict


def single(verdict: Verdict, text: str) -> Body:
    """A frame of one event."""
    return Body(_OPENINGS[verdict], text + "}", size_of(text) + 64, verdict != "delete")


def batches(events: Iterable[tuple[Verdict, str]], *, limit_bytes: int, ending: str = "") -> Iterator[Body]:
    """Frames of many events, each within the limit (an event larger than it travels alone).

    `ending` is added to the last frame; there is a last frame, empty if need be, whenever it is given.
    """
    part: list[str] = []
    size = 0
    for verdict, text in events:
        item = f"{_OPENINGS[verdict]}{text}}}"
        item_size = size_of(item) + 1
        if part and size + item_size > limit_bytes:
            yield _batch(part, size)
            part, size = [], 0
        part.append(item)
        size += item_size
    if part or ending:
        yield _batch(part, size, ending)


def snapshot_text(table: str, key: str, version: int, row: str, texts: Iterable[str] = ()) -> str:
    """A row of a snapshot as the fields of a `data.create`; `texts`: its columns that `text` edits."""
    return (
        f'"table":{_name(table)},"key":{key},"version":{version},"row":{row}{revisions_text(texts, version)}'
    )


def revisions_text(texts: Iterable[str], version: int) -> str:
    """The revision of each text: the version of its row."""
    revisions = ",".join(f"{_name(name)}:{version}" for name in texts)
    return f',"revisions":{{{revisions}}}' if revisions else ""


def departure_text(table: str, key: str, version: int) -> str:
    """A row that is no longer in the view as the fields of a `data.delete`."""
    return f'"table":{_name(table)},"key":{key},"version":{version}'


def gone_text(table: str, key: str) -> str:
    """What answers a `refetch` of a row that is not to be seen (any more), as a `data.delete`'s fields."""
    return f'"table":{_name(table)},"key":{key},"version":0'


def project_text(row: str, columns: tuple[str, ...] | None) -> str:
    return row if columns is None else _project(row.encode(), columns)


@lru_cache(maxsize=4096)
def _name(name: str) -> str:
    """A table's or column's name as JSON: the same few, once an event."""
    return json.dumps(name, ensure_ascii=False)


def size_of(text: str) -> int:
    """Bytes of the text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _batch(items: list[str], size: int, ending: str = "") -> Body:
    text = f'"events":[{",".join(items)}]{ending}}}'
    return Body('{"type":"sync.batch",', text, size + 80, events=len(items))


def _holds(audience: list[str] | None, user: str) -> bool:
    return audience is None or user in audience


def _project(row: bytes, columns: Iterable[str]) -> str:
    values = columns_of(row)
    parts = [f"{_name(name)}:{bytes(values[name]).decode()}" for name in columns if name in values]
    return "{" + ",".join(parts) + "}"


def _texts(event: ChangeEvent, columns: tuple[str, ...] | None) -> dict[str, _TextChange]:
    texts = _text_changes(event.text_op or b"{}")
    return {name: each for name, each in texts.items() if columns is None or name in columns}


def _operations_text(operations: Mapping[str, msgspec.Raw], version: int) -> str:
    parts = [
        f'{_name(name)}:{{"revision":{version},"op":{bytes(op).decode()}}}' for name, op in operations.items()
    ]
    return f',"text":{{{",".join(parts)}}}'


def _origin(event: ChangeEvent) -> str:
    by, at = "", None
    if event.actor:
        by, at = f',"by":{event.actor.decode()}', _actor(event.actor).at
    at = f"{event.captured_us // 1000}-0-sql" if at is None else at
    return (
        f'{by},"at":{json.dumps(at)},"id":"{event.position}","tx":"{event.xid}"'
        f',"times":{{"commit":{event.committed_us},"feed":{event.fed_us},"route":{event.routed_us}}}'
    )
