"""What an application sees: the confirmed rows with its own unconfirmed changes on top of them."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView

from cloudsync.client.change import Change
from cloudsync.client.filters import as_shown, column_types, may_match
from cloudsync.client.replica import Key, Row
from cloudsync.protocol.messages import TableSchema, Where


class Rows(Mapping[Key, Row]):
    """Rows by key: those that are held, but where an unconfirmed change says otherwise."""

    __slots__ = ("_held", "_patches")

    def __init__(self, held: Mapping[Key, Row], patches: Mapping[Key, Row | None]) -> None:
        self._held = held
        self._patches = patches

    def __getitem__(self, key: Key) -> Row:
        if self._patches and key in self._patches:
            row = self._patches[key]
            if row is None:
                raise KeyError(key)
            return row
        return self._held[key]

    def __iter__(self) -> Iterator[Key]:
        if not self._patches:
            return iter(self._held)
        return self._patched()

    def __len__(self) -> int:
        added = sum(
            (row is not None) - (key in self._held) for key, row in self._patches.items()
        )  # a patch adds a row, takes one away, or replaces one
        return len(self._held) + added

    def items(self) -> ItemsView[Key, Row]:
        return super().items() if self._patches else self._held.items()

    def values(self) -> ValuesView[Row]:
        return super().values() if self._patches else self._held.values()

    def __repr__(self) -> str:
        return repr(dict(self.items()))

    def _patched(self) -> Iterator[Key]:
        for key in self._held:
            if self._patches.get(key, self._held) is not None:
                yield key
        for key, row in self._patches.items():
            if row is not None and key not in self._held:
                yield key


class Overlay:
    """Unconfirmed changes by key, in order, and the rows they make: `patches`, None where a row is gone."""

    __slots__ = ("_changes", "_until", "patches")

    def __init__(self) -> None:
        self.patches: dict[Key, Row | None] = {}
        self._changes: dict[Key, list[Change]] = {}
        self._until: dict[int, int] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._changes

    def keys_covered(self) -> list[Key]:
        return list(self._changes)

    def add(self, key: Key, change: Change) -> None:
        self._changes.setdefault(key, []).append(change)

    def remove(self, key: Key, change: Change) -> None:
        """Forget a change, rejected or shown by the confirmed row."""
        kept = [other for other in self._changes.get(key, ()) if other is not change]
        self._until.pop(change.number, None)
        if kept:
            self._changes[key] = kept
        else:
            self._changes.pop(key, None)

    def keep_until(self, change: Change, version: int) -> None:
        """A change is confirmed: show it until the row arrives in this version."""
        self._until[change.number] = version

    def seen(self, key: Key, version: int) -> None:
        """The row is held in this version: confirmed changes that it contains are done with."""
        for change in list(self._changes.get(key, ())):
            if self._until.get(change.number, version + 1) <= version:
                self.remove(key, change)

    def paint(self, key: Key, held: Row | None, schema: TableSchema, where: Where | None) -> None:
        """Make the row anew that is shown for a key, from the one that is held."""
        changes = self._changes.get(key)
        if changes is None:
            self.patches.pop(key, None)
            return
        types = column_types(schema)
        row = held
        for change in changes:
            if change.op == "delete":
                row = None
                continue
            if row is None and change.op in ("update", "resolve"):
                continue  # of a row that is not in this view, or was deleted by somebody else
            values = {**change.key, **change.values} if change.op == "create" else change.values
            shown = {
                name: as_shown(value, types.get(name))
                for name, value in values.items()
                if name not in change.withdrawn
            }
            row = {**(row or {}), **shown}
        if row is not None:
            row = {name: row[name] for name in types if name in row} if may_match(where, row, types) else None
        self.patches[key] = row
