"""What all ways of asking share: requests are read, wait for the models together, and become the profile's entries."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fedprofile.client.profiler import Profiler
from fedprofile.client.serving.batching import Batcher, Examples, QueueFullError, Scored
from fedprofile.client.serving.federation import Federation
from fedprofile.client.serving.requests import RequestReader
from fedprofile.common.interactions import Example

Explain = Callable[[Profiler, Example], dict[str, Any]]
"""From a model and what it is asked about to an explanation by event, as JSON values."""


MOST_EXPLAINED = 4
"""Explanations that are asked for at once: each takes many passes, between which everyone else waits."""


class LateError(Exception):
    """No answer came in time."""


class Service:
    """Answers requests.

    Args:
        federations: By name.
        batcher: Over the same federations.
        timeout: Seconds that a request waits for its answer.
        max_events: Of one request.
        explain: Explains a prediction; None where nothing can.
    """

    def __init__(
        self,
        federations: Mapping[str, Federation],
        batcher: Batcher,
        *,
        timeout: float,
        max_events: int,
        explain: Explain | None = None,
    ) -> None:
        self.federations, self.batcher, self.explain = federations, batcher, explain
        self._timeout, self._explaining = timeout, 0
        self.reader = RequestReader(federations, max_events)
        everyone = federations.values()
        self._readers = {name: RequestReader({name: one}, max_events, everyone) for name, one in federations.items()}

    @property
    def retry_after(self) -> int:
        """Seconds after which a refused request may find room."""
        return max(1, math.ceil(self._timeout / 10))

    async def profile(self, body: bytes) -> dict[str, Any]:
        """One user's profile.

        Args:
            body: See `RequestReader.read`.

        Returns:
            An entry of each federation, and when they were made.

        Raises:
            GivenError: The request cannot be read.
            QueueFullError: Too many wait.
            LateError: It took too long.
        """
        examples = {name: [example] for name, example in self.reader.read(body).items()}
        answer = await self._answer(examples)
        entries = {name: (await self._said(name, examples[name], scored))[0] for name, scored in answer.items()}
        return {"profile": entries, "date": datetime.now(UTC).isoformat(timespec="seconds")}

    async def scored(self, name: str, texts: Sequence[bytes]) -> tuple[Scored, list[dict[str, Any]]]:
        """What one federation's model says of several requests.

        Args:
            name: Of the federation.
            texts: See `RequestReader.read`.

        Returns:
            The scores, all of one adapter, and the profile's entry of each request.

        Raises:
            GivenError, QueueFullError, LateError: See `profile`.
        """
        examples = [self._readers[name].read(text)[name] for text in texts]
        scored = (await self._answer({name: examples}))[name]
        return scored, await self._said(name, examples, scored)

    async def explanation(self, body: bytes) -> dict[str, Any]:
        """Why each federation says what it says, by event.

        Args:
            body: See `RequestReader.read`.

        Returns:
            What `explain` gives, by federation.

        Raises:
            GivenError, QueueFullError, LateError: See `profile`.
        """
        assert self.explain is not None
        explain, found = self.explain, dict[str, Any]()

        def act() -> None:
            for name, example in examples.items():
                federation = self.federations[name]
                explanation = explain(federation.profiler, example)
                federation.log_explained(example.user, explanation)
                found[name] = explanation

        examples = self.reader.read(body)
        if self._explaining == MOST_EXPLAINED:
            raise QueueFullError
        self._explaining += 1
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.wrap_future(self.batcher.between(act))
        except TimeoutError:
            raise LateError from None
        finally:
            self._explaining -= 1
        return {"explanation": found}

    def facts(self) -> dict[str, Any]:
        """What a person should know of the models, and whether they can be explained."""
        federations = {name: federation.facts() for name, federation in self.federations.items()}
        return {"federations": federations, "explains": self.explain is not None}

    async def _said(self, name: str, examples: Sequence[Example], scored: Scored) -> list[dict[str, Any]]:
        """The entries; in another thread where a log is waited for."""
        federation = self.federations[name]
        say = partial(federation.says, examples, scored.scores, scored.round, scored.adapter_hash)
        return say() if federation.log is None else await asyncio.to_thread(say)

    async def _answer(self, examples: Examples) -> Mapping[str, Scored]:
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.wrap_future(self.batcher.submit(examples))
        except TimeoutError:
            raise LateError from None
