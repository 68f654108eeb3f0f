"""A new round's adapter is taken while requests are answered: its entry is looked at every second."""

import asyncio
import logging
from collections.abc import Collection

from fedprofile.client.serving.batching import Batcher
from fedprofile.client.serving.federation import Federation
from fedprofile.common.errors import FedprofileError

EVERY = 1.0
"""Seconds."""

_log = logging.getLogger(__name__)


async def follow(federations: Collection[Federation], batcher: Batcher) -> None:
    """Put in whatever newer adapter comes, until cancelled. One that cannot be used is named in the log and left.

    Args:
        federations: Those that are served.
        batcher: Runs their models.
    """
    seen: dict[str, tuple[int, ...]] = {}
    while True:
        for federation in federations:
            # The first look is at every entry: one may have come after the models were loaded.
            entry = federation.adapters.written()
            if entry != seen.get(federation.name):
                seen[federation.name] = entry
                await _take(federation, batcher)
        await asyncio.sleep(EVERY)


async def _take(federation: Federation, batcher: Batcher) -> None:
    profiler = federation.profiler
    try:
        entry = federation.adapters.require()
        if (entry.round, entry.arrays_hash) == (profiler.round, profiler.adapter_hash):
            return
        number, arrays = await asyncio.to_thread(federation.adapters.newest, profiler.model.layout())
    except FedprofileError as error:
        _log.error("%s: the newest adapter is not taken: %s", federation.name, error)
        return
    await asyncio.wrap_future(batcher.between(lambda: federation.take(number, arrays)))
    _log.info("%s: round %d is served now, adapter %s", federation.name, number, federation.profiler.adapter_hash)
