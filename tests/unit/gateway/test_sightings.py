"""Whose turn it is to be stamped as seen."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

from cloudsync.gateway.sightings import _EVERY_S, _SLICES, _in_turn
from cloudsync.registry.clients import UNSEEN_S


def test_everybody_who_was_greeted_has_a_turn_in_time() -> None:
    connections: Any = [SimpleNamespace(client_id=f"c_{n}", principal="ann") for n in range(1000)]
    strangers: Any = [
        SimpleNamespace(client_id="c_x", principal=None),
        SimpleNamespace(client_id=None, principal="x"),
    ]
    turns = [_in_turn([*connections, *strangers], turn) for turn in range(_SLICES)]
    assert sorted(itertools.chain(*turns)) == sorted(each.client_id for each in connections)
    assert max(map(len, turns)) < 100, "they are spread"
    assert _SLICES * _EVERY_S <= UNSEEN_S / 2
