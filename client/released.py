"""One release: every field of the reply, and the hashes of its arrays, out of the tenant's own files.

The ledger notes a payload before the reply leaves, so that nothing can leave unnoted; whether it then left, and
arrived, is not known here.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprofile.client.ledger_summary import LedgerSummary
from fedprofile.client.outbox import question_key, stored_reply
from fedprofile.common.adapters import arrays_hash
from fedprofile.common.errors import ConfigError
from fedprofile.common.messages import Reply


@dataclass(frozen=True)
class Release:
    """One entry of the ledger and the reply that belongs to it.

    Args:
        row: The entry's fields; see `LedgerSummary.rows`.
        reply: As it was released for sending; None where this directory has none.
    """

    row: dict[str, object]
    reply: Reply | None

    @property
    def state(self) -> str:
        """Whether anything may have left, in one sentence."""
        payload = self.row["payload"]
        if payload is None:
            if self.row["written_off"]:
                return "Lost entries were written off with this one; what they released is not known here."
            return "Nothing was released for sending: the work was cut off after its cost was written down."
        if self.reply is None:
            return "Released for sending; its fields are not in this directory's outbox, and their hash is `payload`."
        if arrays_hash(self.reply.arrays) != payload:
            return "The outbox holds another reply than was released: its arrays do not give the hash `payload`."
        return "Released for sending, with exactly these fields; the hash over all arrays is `payload`."

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the arrays by name, dtype, shape and SHA-256, which an auditor can compare."""
        if self.reply is None:
            return {**self.row, "state": self.state, "fields": None}
        fields = {
            "kind": self.reply.kind.value,
            "card": self.reply.card_hash,
            "round": self.reply.round,
            "ledger_sequence": self.reply.ledger.sequence,
            "ledger_head": self.reply.ledger.head,
            "arrays": [
                {
                    "name": name,
                    "dtype": str(values.dtype),
                    "shape": list(values.shape),
                    "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
                }
                for name, values in self.reply.arrays.items()
            ],
        }
        return {**self.row, "state": self.state, "fields": fields}

    def as_text(self) -> str:
        """For a person."""
        found = self.as_dict()
        fields = found.pop("fields")
        state = found.pop("state")
        lines = ["The ledger's entry:", *_lines(found), state]
        if fields is not None:
            arrays = fields.pop("arrays")
            lines += ["The reply's fields:", *_lines(fields), "The reply's arrays:"]
            lines += [f"  {one['sha256']}  {one['dtype']} {one['shape']}  {one['name']}" for one in arrays]
        return "\n".join(lines)


def release_of(found: LedgerSummary, sequence: int, outbox: Path) -> Release:
    """Find what was released with one entry.

    Args:
        found: The ledger.
        sequence: Of the entry.
        outbox: The directory's; only read.

    Returns:
        The release.

    Raises:
        ConfigError: The ledger has no such entry.
    """
    for entry, row in zip(found.releases, found.rows(), strict=True):
        if entry.sequence == sequence:
            plans = {reading.segment.number: reading.segment.plan for reading in found.segments}
            if entry.segment not in plans:
                raise ConfigError(
                    f"--show {sequence}: its run {entry.segment} is not in the ledger, which was edited; restore the "
                    "newest backup."
                )
            card = plans[entry.segment].card_hash
            reply = stored_reply(outbox, question_key(card, entry.kind, entry.round, entry.question))
            # The same question is answered anew after a lost reply: the outbox then has the later entry's.
            return Release(row, reply if reply is not None and reply.ledger.sequence == sequence else None)
    raise ConfigError(f"--show {sequence}: the ledger has no such release; it has {len(found.releases)}.")


def _lines(values: dict[str, object]) -> list[str]:
    return [f"  {name:17}{json.dumps(value)}" for name, value in values.items()]
