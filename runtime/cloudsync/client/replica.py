"""A subscription's rows at the client, kept right by versions: repeats are harmless, gaps ask for the row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

from cloudsync.client.frames import Data, DataCreate, DataDelete, DataUpdate
from cloudsync.protocol.checksum import checksum, checksum_text
from cloudsync.resolve import text as ot
from cloudsync.resolve.text import BadOperation
from cloudsync.sharding import key_text

Key = tuple[Any, ...]
Row = dict[str, Any]
Operation = Literal["create", "update", "delete"]

TOMBSTONES_KEPT: Final = 10_000
_STALE_ANSWERS: Final = 3
_MISSING: Final = object()


class Applied(NamedTuple):
    """What an event did to the rows: `row` is the row after it, `changes` the new values of an update."""

    op: Operation
    key: Key
    row: Row | None
    changes: Row
    version: int


class _Want:
    """A row to fetch as a whole: its key as on the wire, the newest version heard of, answers too old."""

    __slots__ = ("key", "stale_answers", "version")

    def __init__(self, key: Row, version: int) -> None:
        self.key, self.version, self.stale_answers = key, version, 0


class Replica:
    """Rows and versions by key. Row dicts are replaced, never changed, so a reader may keep one."""

    __slots__ = (
        "_key_columns",
        "_odd_keys",
        "_to_ask",
        "_tombstones",
        "_wanted",
        "number",
        "rows",
        "touched",
        "versions",
    )

    def __init__(self, key_columns: Sequence[str] = ()) -> None:
        self.rows: dict[Key, Row] = {}
        self.versions: dict[Key, int] = {}
        self.number = 0
        """Which of a store's replicas this is; 0: none yet."""
        self.touched: set[Key] | None = None
        """Keys that a store has not seen as they are now; None: no store asks."""
        self._key_columns = tuple(key_columns)
        self._odd_keys: dict[Key, list[Any]] = {}
        self._tombstones: dict[Key, int] = {}
        self._wanted: dict[Key, _Want] = {}
        self._to_ask: list[Key] = []

    def key_of(self, key: Row) -> Key:
        values = tuple([key[column] for column in self._key_columns])
        try:
            hash(values)
        except TypeError:
            odd = tuple([_hashable(value) for value in values])
            self._odd_keys[odd] = list(values)
            return odd
        return values

    def wire_key(self, key: Key) -> list[Any]:
        """A key's values as they travel."""
        return self._odd_keys.get(key) or list(key)

    def known(self, key: Key) -> int:
        """The newest version heard of for certain, of a row or of its deletion; -1: none."""
        held = self.versions.get(key)
        return self._tombstones.get(key, -1) if held is None else held

    def state(self, key: Key) -> tuple[int, Row | None, int | None]:
        """Version (-1: nothing is known), row (None: it is gone), and the version that is to be fetched."""
        want = self._wanted.get(key)
        return self.known(key), self.rows.get(key), None if want is None else want.version

    def restore(self, key: Row, version: int, row: Row | None, wanted: int | None) -> None:
        """Take back what `state` told of a key."""
        place = self.key_of(key)
        if row is not None:
            self.rows[place], self.versions[place] = row, version
        elif version >= 0:
            self._tombstones[place] = version
        if wanted is not None:
            self._wanted[place] = _Want(key, wanted)

    @property
    def key_columns(self) -> tuple[str, ...]:
        return self._key_columns

    def apply(self, event: Data) -> Applied | None:
        """Take an event in; None if it changed nothing: a repeat, or the row must be fetched first."""
        key = self.key_of(event.key)
        held = self.versions.get(key)
        known = self.known(key)
        if isinstance(event, DataUpdate):
            if event.version <= known:
                return None
            if held is None or event.prev_version != held:
                self._want(key, event)
                return None
            try:
                changes = _changed_values(self.rows[key], event)
            except BadOperation:
                self._want(key, event)
                return None
            row = {**self.rows[key], **changes}
            self._hold(key, row, event.version)
            return Applied("update", key, row, changes, event.version)
        if isinstance(event, DataCreate):
            return self._create(key, event, known)
        return self._delete(key, event, known)

    def refetches(self) -> list[Row]:
        """Keys of rows to ask for now; each is named once until it has to be asked for again."""
        if not self._to_ask:
            return []
        keys = [self._wanted[key].key for key in dict.fromkeys(self._to_ask) if key in self._wanted]
        self._to_ask.clear()
        return keys

    def checksum(self) -> str | None:
        """Of everything held, as the server computes it; None while a row has to be fetched first."""
        if self._wanted:
            return None
        held = ((key_text(self._odd_keys.get(key, key)), version) for key, version in self.versions.items())
        return checksum_text(checksum(held))

    def ask_again(self) -> None:
        """Whatever was asked for on a connection that is lost has to be asked for anew."""
        self._to_ask = list(self._wanted)

    def replace(self, other: Replica) -> Iterator[Applied]:
        """Take over everything that `other` holds in one step; the differences, for whoever wants them."""
        rows, versions = dict(self.rows), dict(self.versions)
        self.rows.clear()
        self.rows.update(other.rows)
        self.versions.clear()
        self.versions.update(other.versions)
        self._key_columns = other._key_columns
        self._tombstones, self._wanted, self._to_ask = other._tombstones, other._wanted, other._to_ask
        self._odd_keys = other._odd_keys
        self.number, self.touched = other.number, other.touched
        return _differences(rows, versions, dict(other.rows), dict(other.versions))

    def keep_columns(self, names: Collection[str]) -> None:
        """Drop every other column from the rows held."""
        for key, row in self.rows.items():
            if not row.keys() <= set(names):
                self._touch(key)
                self.rows[key] = {name: value for name, value in row.items() if name in names}

    def _create(self, key: Key, event: DataCreate, known: int) -> Applied | None:
        if event.version <= known:
            want = self._wanted.get(key)
            if want is not None and event.version == known and want.stale_answers < _STALE_ANSWERS:
                want.stale_answers += 1
                self._to_ask.append(key)
            return None
        before = self.rows.get(key)
        self._tombstones.pop(key, None)
        self._hold(key, event.row, event.version)
        if before is None:
            return Applied("create", key, event.row, {}, event.version)
        return Applied("update", key, event.row, _changes(before, event.row), event.version)

    def _delete(self, key: Key, event: DataDelete, known: int) -> Applied | None:
        # Version 0 answers a refetch of a row that is gone or hidden: its version is not ours to know.
        gone = event.version == 0 and key in self._wanted
        if event.version <= known and not gone:
            return None
        self._wanted.pop(key, None)
        self._tombstones.pop(key, None)
        self._tombstones[key] = max(known, event.version)
        self._touch(key)
        if len(self._tombstones) > TOMBSTONES_KEPT:
            oldest = next(iter(self._tombstones))
            del self._tombstones[oldest]
            self._touch(oldest)
        if self.rows.pop(key, None) is None:
            return None
        del self.versions[key]
        return Applied("delete", key, None, {}, event.version)

    def _hold(self, key: Key, row: Row, version: int) -> None:
        self.rows[key] = row
        self.versions[key] = version
        self._touch(key)
        want = self._wanted.get(key)
        if want is None:
            return
        if version >= want.version:
            del self._wanted[key]
        else:
            self._to_ask.append(key)  # newer, but not new enough

    def _want(self, key: Key, event: DataUpdate) -> None:
        self._touch(key)
        want = self._wanted.get(key)
        if want is None:
            self._wanted[key] = _Want(event.key, event.version)
            self._to_ask.append(key)
            return
        want.version = max(want.version, event.version)
        if want.stale_answers == _STALE_ANSWERS:
            want.stale_answers = 0
            self._to_ask.append(key)

    def _touch(self, key: Key) -> None:
        if self.touched is not None:
            self.touched.add(key)


def _changed_values(row: Row, event: DataUpdate) -> Row:
    """The new values of an update, with its text operations carried out. Raises BadOperation."""
    if not event.text:
        return event.changes
    texts = {
        column: ot.apply(row.get(column) or "", change.op)
        for column, change in event.text.items()
        if column not in event.changes
    }
    return {**event.changes, **texts}


def _changes(before: Row, after: Row) -> Row:
    return {name: value for name, value in after.items() if before.get(name, _MISSING) != value}


def difference(key: Key, before: Row | None, after: Row | None, version: int) -> Applied | None:
    """What happened to one row; None if nothing did."""
    if before == after:
        return None
    if after is None:
        return Applied("delete", key, None, {}, version)
    if before is None:
        return Applied("create", key, after, {}, version)
    return Applied("update", key, after, _changes(before, after), version)


def _differences(
    rows: dict[Key, Row], versions: dict[Key, int], new_rows: dict[Key, Row], new_versions: dict[Key, int]
) -> Iterator[Applied]:
    for key in rows:
        if key not in new_rows:
            yield Applied("delete", key, None, {}, versions[key])
    for key, row in new_rows.items():
        found = difference(key, rows.get(key), row, new_versions[key])
        if found is not None:
            yield found


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple([_hashable(item) for item in value])
    if isinstance(value, dict):
        return tuple(sorted((name, _hashable(item)) for name, item in value.items()))
    return value
