"""When clients were last seen, as the list of a user's devices says."""

from __future__ import annotations

from datetime import datetime

from integration.path.world import World
from waiting import eventually_async


async def test_a_client_is_seen_when_it_comes_and_when_it_goes(world: World) -> None:
    watcher = await world.watch("acme", "seen")

    def seen() -> datetime | None:
        ((when,),) = world.run("SELECT last_seen_at FROM cloudsync.clients WHERE user_id = 'seen'")
        return when if isinstance(when, datetime) else None

    came = await eventually_async(seen, 15)
    await watcher.close()
    await eventually_async(lambda: seen() != came, 15)
