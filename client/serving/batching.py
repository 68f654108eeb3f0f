"""Requests that wait are put together: one thread runs the models, one batch after another.

Guarantees:
- The queue is bounded in records. What does not fit is refused at once, and whatever is taken is answered: with
  scores, with the error of its own records, or, where nobody waits for it any more, not at all.
- A record's scores do not depend on the others of its batch (see `fedprofile.common.modeling.profile_model`), and an
  error of one request is not another's: where a batch fails, its requests run one at a time.
- A new adapter is put in between two batches, and all scores of a batch are of one adapter, which each answer names.
- An idle worker waits for company no longer than `wait` seconds.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedprofile.client.serving.federation import Federation
from fedprofile.common.interactions import Example

Examples = Mapping[str, Sequence[Example]]
"""By federation."""


class QueueFullError(Exception):
    """As many records wait as may; ask again later."""


@dataclass(frozen=True)
class Scored:
    """What a federation's model says.

    Args:
        scores: [n, outputs].
        round: After which round the adapter was.
        adapter_hash: Of the adapter.
    """

    scores: NDArray[np.float64] = field(repr=False)
    round: int
    adapter_hash: str


Answer = Mapping[str, Scored]


@dataclass(frozen=True)
class _Job:
    examples: Examples = field(repr=False)
    answer: "Future[Answer]"
    size: int


class Batcher:
    """Runs models in a thread of its own.

    Args:
        federations: By name.
        max_batch: Records of one batch.
        max_waiting: Records in the queue.
        wait: Seconds for which a batch that is not full waits for more.
    """

    def __init__(
        self,
        federations: Mapping[str, Federation],
        *,
        max_batch: int,
        max_waiting: int,
        wait: float = 0.0,
    ) -> None:
        self._federations, self._max_batch, self._max_waiting, self._wait = federations, max_batch, max_waiting, wait
        self._jobs: deque[_Job] = deque()
        self._between: deque[tuple[Future[None], Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._waiting, self._closed = 0, False
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    @property
    def most(self) -> int:
        """Records of one request."""
        return min(self._max_batch, self._max_waiting)

    def submit(self, examples: Examples) -> "Future[Answer]":
        """Ask for scores.

        Args:
            examples: No more than `most` of a federation.

        Returns:
            The answer to come; cancel it where nobody waits for it.

        Raises:
            QueueFullError: The queue has no room for them, or the batcher is closed.
        """
        job = _Job(examples, Future(), max(map(len, examples.values()), default=0))
        with self._changed:
            if self._closed or self._waiting + job.size > self._max_waiting:
                raise QueueFullError
            self._jobs.append(job)
            self._waiting += job.size
            self._changed.notify()
        return job.answer

    def between(self, act: Callable[[], None]) -> "Future[None]":
        """Do something in the thread before the next batch, one such thing before each.

        Args:
            act: Called once.

        Returns:
            When it is done, or what it raised.
        """
        done: Future[None] = Future()
        with self._changed:
            self._between.append((done, act))
            self._changed.notify()
        return done

    def close(self) -> None:
        """Answer what was taken, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._between or self._closed)
                if not self._between and not self._jobs:
                    return
                act = self._between.popleft() if self._between else None
            if act is not None:
                _settle(*act)
            if jobs := self._next_batch():
                self._answer(jobs)

    def _next_batch(self) -> list[_Job]:
        found: list[_Job] = []
        size, end = 0, time.monotonic() + self._wait
        with self._changed:
            while True:
                while self._jobs and size + self._jobs[0].size <= self._max_batch:
                    job = self._jobs.popleft()
                    self._waiting -= job.size
                    if job.answer.set_running_or_notify_cancel():
                        found.append(job)
                        size += job.size
                left = end - time.monotonic()
                if not found or self._jobs or size >= self._max_batch or left <= 0 or self._closed:
                    return found
                self._changed.wait(left)
                if self._between:
                    return found

    def _answer(self, jobs: Sequence[_Job]) -> None:
        try:
            answers = self._scored([job.examples for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.answer.set_result(answer)

    def _scored(self, asked: Sequence[Examples]) -> list[dict[str, Scored]]:
        answers: list[dict[str, Scored]] = [{} for _ in asked]
        for name, federation in self._federations.items():
            having = [place for place, examples in enumerate(asked) if name in examples]
            together = [example for place in having for example in asked[place][name]]
            if not having:
                continue
            profiler = federation.profiler
            scores = profiler.scores(together)
            if not np.isfinite(scores).all():
                raise ArithmeticError("a score is not finite")
            start = 0
            for place in having:
                end = start + len(asked[place][name])
                answers[place][name] = Scored(scores[start:end], profiler.round, profiler.adapter_hash)
                start = end
        return answers


def _settle(done: "Future[None]", act: Callable[[], None]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        act()
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(None)
