"""Tenants' clients of the product's own parts that do one thing otherwise: `odd_client.py DIR MODE [DIR MODE]...`.

nan          the first number of a reply is not one
shape        its first array holds one value too many
name         its first array has another name
leak         the first array is named after what stands in the source
fail=STEP    raises an error that quotes the source, each time it comes to a step: one of `STEPS`
record       beside the schema's records stands one that claims a huge weight
field        among the schema's fields stands one that claims a huge weight
hold=STEPS   stops at steps such as `train-2`, after the ledger was written and before anything is drawn, or
             `deliver-4`, after the adapter was kept and before that is answered: makes DIR/held-STEP and goes on
             when DIR/go-STEP is there
"""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fedprofile.common.environment  # noqa: F401  (before flwr)

# isort: split
import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord

from fedprofile.client.agreement import read_agreement
from fedprofile.client.app import Trainer
from fedprofile.client.connection import Connection
from fedprofile.client.directory import TenantDirectory
from fedprofile.client.enrolment import read_key
from fedprofile.client.journal import Journal
from fedprofile.client.participation import adapter_bytes
from fedprofile.client.randomness import Randomness
from fedprofile.client.records import ExampleSource
from fedprofile.client.registry import Registry
from fedprofile.client.site import Site, open_site
from fedprofile.client.transport import MessageLimits
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays, Kind, content_of, reply_of, request_of

HUGE = 10**12
STEPS: dict[str, tuple[str, str]] = {
    "source": ("", "_records"),
    "self-test": ("_trainer", "self_test"),
    "mark": ("_ledger", "check_mark"),
    "cap": ("_ledger", "check_cap"),
    "reserve": ("_ledger", "reserve"),
    "randomness": ("", "_make_randomness"),
    "train": ("_trainer", "train"),
    "evaluate": ("_evaluator", "evaluate"),
    "outbox": ("_outbox", "put"),
    "released": ("_ledger", "mark_released"),
    "refusal": ("_ledger", "count_refusal"),
    "adapter": ("", "_on_adapter"),
}
"""Where a tenant's app can be made to fail: which of its parts, and that part's function."""


class PlantedError(Exception):
    """Quotes private data, as an error of a library may."""


class HeldTrainer:
    """Trains after a pause; what it trains for is reserved by then."""

    def __init__(self, trainer: Trainer, odd: "OddHandler") -> None:
        self._trainer, self._odd = trainer, odd

    def self_test(self) -> None:
        """As ever."""
        self._trainer.self_test()

    def train(
        self, arrays: Arrays, records: EncodedRecords, *, steps: int, randomness: Randomness, round_number: int = 1
    ) -> Arrays:
        """As ever, but later."""
        self._odd.hold(Kind.TRAIN)
        return self._trainer.train(arrays, records, steps=steps, randomness=randomness, round_number=round_number)


class OddHandler:
    """Answers as the site does, and then spoils it, or holds it back."""

    def __init__(self, site: Site, folder: Path, mode: str) -> None:
        self._site, self._folder, self._mode = site, folder, mode
        self._steps = mode.removeprefix("hold=").split(",") if mode.startswith("hold=") else []
        self._round = 0
        self._private = (folder / "visits.csv").read_text()
        if mode.startswith("fail="):
            self._plant(mode.removeprefix("fail="))
        site.app._trainer = HeldTrainer(site.app._trainer, self)

    def answer(self, request: Message) -> Message:
        """Turn a request into a reply."""
        decoded = request_of(request)
        self._round = decoded.round
        reply = self._site.answer(request)
        if decoded.kind is Kind.DELIVER:
            self.hold(Kind.DELIVER)
        return reply if reply.has_error() or self._steps else self._spoiled(reply, request)

    def sent(self, request: Message, reply: Message) -> bool:
        """After a reply has left."""
        return self._site.sent(request, reply)

    def hold(self, kind: Kind) -> None:
        """Wait, where it is a step to wait at."""
        step = f"{kind.name.lower()}-{self._round}"
        if step in self._steps:
            (self._folder / f"held-{step}").touch()
            while not (self._folder / f"go-{step}").exists():
                time.sleep(0.05)

    def _plant(self, step: str) -> None:
        part, function = STEPS[step]

        def fail(*arguments: object, **named: object) -> None:
            try:
                raise ValueError(self._private)
            except ValueError as error:
                raise PlantedError(self._private, arguments, named) from error

        setattr(getattr(self._site.app, part) if part else self._site.app, function, fail)

    def _spoiled(self, reply: Message, request: Message) -> Message:
        decoded = reply_of(reply)
        arrays = decoded.arrays
        if arrays:
            first = next(iter(arrays))
            value = arrays[first].copy()
            if self._mode == "nan":
                value.flat[0] = np.nan
            elif self._mode == "shape":
                value = np.append(value.ravel(), value.flat[0])
            arrays[first] = value
            if self._mode == "name":
                arrays["other"] = arrays.pop(first)
            elif self._mode == "leak":
                arrays[self._private.splitlines()[1]] = arrays.pop(first)
        content = content_of(decoded)
        if self._mode == "record":
            content["metrics"] = MetricRecord({"num-examples": HUGE})
        elif self._mode == "field":
            content["fields"] = ConfigRecord({**content.config_records["fields"], "num-examples": HUGE})
        return Message(content, reply_to=request)


def take_part(folder: Path, mode: str) -> None:
    """What `flower-client start` does, with another handler."""
    place = TenantDirectory(folder)
    agreement = read_agreement(place)
    say = partial(print, f"{folder.name}:", flush=True)
    with place.running():
        examples = ExampleSource(agreement.tenant, agreement.card, place.root)
        site = open_site(place, agreement, examples, say, Registry.of_user())
        Connection(
            address=agreement.invite.address,
            ca=agreement.invite.ca,
            key=read_key(place.key),
            node_file=place.node,
            journal=Journal(place.journal),
            limits=MessageLimits.of_adapter(adapter_bytes(site.model.layout())),
            reply_every=agreement.tenant.policy.reply_every,
            stop=threading.Event(),
            say=say,
            over=lambda: site.over,
        ).serve(OddHandler(site, folder, mode))
        site.close()


def main(arguments: list[str]) -> None:
    """All of them at once, each in a thread."""
    with ThreadPoolExecutor(len(arguments) // 2) as pool:
        for done in [pool.submit(take_part, Path(arguments[i]), arguments[i + 1]) for i in range(0, len(arguments), 2)]:
            done.result()


if __name__ == "__main__":
    main(sys.argv[1:])
