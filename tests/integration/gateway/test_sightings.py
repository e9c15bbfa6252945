"""When clients were last seen, as the list of a user's devices says."""

from __future__ import annotations

from datetime import datetime

from integration.path.world import World
from waiting import eventually_async


async def test_a_client_that_has_left_was_seen_then(world: World) -> None:
    watcher = await world.watch("acme", "seen")
    await watcher.close()

    def seen() -> datetime | None:
        ((when,),) = world.run("SELECT last_seen_at FROM cloudsync.clients WHERE user_id = 'seen'")
        return when if isinstance(when, datetime) else None

    stamped = await eventually_async(seen, 15)
    ((made,),) = world.run("SELECT created_at FROM cloudsync.clients WHERE user_id = 'seen'")
    assert stamped > made
