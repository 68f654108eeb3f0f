"""The tenant's records as the model takes them, read anew when the source has changed.

While requests are answered nothing here fails because of one user's rows: see `fedprofile.client.sources` for wrong
rows; a user at one of whose texts the tokenizer fails is left out in the same way. The tenant's log is told how many
users and rows are left out, and never what stands in them.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from fedprofile.client.sampling import TenantRecords, split_records
from fedprofile.client.snapshot import Snapshot
from fedprofile.client.sources import read_examples, read_usable, read_users
from fedprofile.common.candidates import encode_records
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords, Example, TextError, Tokenizer
from fedprofile.common.tenant import FileSource, TenantFile

_log = logging.getLogger(__name__)

Stamp = tuple[bytes, ...]


class ExampleSource:
    """Reads the source; files only where their content has changed since, SQL each time.

    Args:
        tenant: Where the data lies.
        card: What is made of it.
        folder: What relative paths count from.
        claim: Called before each look at the source, whose path may lead elsewhere than before; see
            `fedprofile.client.agreement.claim_sources`.
        snapshot: Where the run's one state is kept; None where each reading is used as it is.
    """

    def __init__(
        self,
        tenant: TenantFile,
        card: FederationCard,
        folder: Path,
        claim: Callable[[], None] = lambda: None,
        snapshot: Snapshot | None = None,
    ) -> None:
        self._tenant, self._card, self._folder, self._claim = tenant, card, folder, claim
        self._snapshot = snapshot
        self._stamp: Stamp | None = None
        self._waiting: list[Example] | None = None
        self._given: int | None = None

    def validate(self) -> None:
        """Read the source strictly, for the next `news`; before anything is sent. A second call does nothing.

        A snapshot of this run was read strictly when it was taken; who is still there is all that is read again.

        Raises:
            DataError: It cannot be read, or rows are wrong; see `read_examples`.
            PolicyRefusal: The card asks for what it may not have.
            ConfigError: The tenant file does not fit card or source, the source is another population's, or a snapshot
                cannot be written.
        """
        if self._waiting is None:
            stamp = self._look()
            found = self._kept()
            if found is None:
                found = read_examples(self._tenant, self._card, self._folder)
                self._keep(found)
            self._waiting, self._stamp = found, stamp

    def news(self, again: bool = False) -> list[Example] | None:
        """What can be used of the source now; what is wrong with a user's rows leaves out that user.

        Args:
            again: Also where nothing has changed.

        Returns:
            The examples; None where they are those that were given before.

        Raises:
            DataError: The source as a whole cannot be read, or a column is missing.
            ConfigError: The source is another population's by now, or a snapshot cannot be written.
        """
        stamp, waiting = self._look(), self._waiting
        self._waiting = None
        if stamp == self._stamp and (waiting is not None or (stamp is not None and not again)):
            self._given = self._given if waiting is None else len(waiting)
            return waiting
        self._stamp = None
        examples = self._kept()
        if examples is None:
            examples = self._usable()
            self._keep(examples)
        elif len(examples) == self._given and not again:
            examples = None  # A snapshot only ever shrinks.
        self._stamp = stamp
        if examples is not None:
            self._given = len(examples)
        return examples

    def end_run(self) -> None:
        """Delete the run's snapshot, where there is one."""
        if self._snapshot is not None:
            self._snapshot.remove()

    def _usable(self) -> list[Example]:
        found = read_usable(self._tenant, self._card, self._folder)
        if found.rows_left_out:
            _log.warning(
                "%d users and %d rows are left out, because rows are wrong; `flower-client check` names them.",
                found.users_left_out,
                found.rows_left_out,
            )
        return found.examples

    def _kept(self) -> list[Example] | None:
        """What the run's snapshot holds of users who are still in the source; None where there is none."""
        examples = None if self._snapshot is None else self._snapshot.read()
        if examples is None:
            return None
        users = read_users(self._tenant, self._folder)
        kept = [example for example in examples if example.user in users]
        if len(kept) < len(examples):
            self._keep(kept)
        return kept

    def _keep(self, examples: list[Example]) -> None:
        if self._snapshot is not None:
            self._snapshot.write(examples)

    def _look(self) -> Stamp | None:
        """What tells that a file has changed; None where only reading tells.

        The content's hash: a copy that keeps size and time of a file (`rsync --inplace --times`) would hide from
        everything else that a user has been deleted. It is taken before the file is read, so that a change between
        the two is seen the next time.
        """
        self._claim()
        digests = []
        for source in (self._tenant.source, self._tenant.events):
            if source is None:
                continue
            if not isinstance(source, FileSource):
                return None
            try:
                with (self._folder / source.path).open("rb") as file:
                    digests.append(hashlib.file_digest(file, "sha256").digest())
            except OSError:
                return None  # Reading says what is wrong.
        return tuple(digests)


class RecordSource:
    """The source's records, split by user.

    Args:
        examples: Reads the source.
        card: What is made of it.
        tokenizer: Of the base model.
        evaluation_user: Which users are only evaluated; `Ledger.evaluation_user`.
        on_change: Called with all records each time that the source was read, before they are used: what is stored
            of users who are gone is deleted there. It must not fail because of a record.
    """

    def __init__(
        self,
        *,
        examples: ExampleSource,
        card: FederationCard,
        tokenizer: Tokenizer,
        evaluation_user: Callable[[str], bool],
        on_change: Callable[[EncodedRecords], None],
    ) -> None:
        self._examples, self._card, self._tokenizer = examples, card, tokenizer
        self._evaluation_user, self._on_change = evaluation_user, on_change
        self._records: TenantRecords | None = None

    def __call__(self) -> TenantRecords:
        """What the source holds now.

        Returns:
            The records, split by user; none where the source has none that can be used.

        Raises:
            DataError: The source as a whole cannot be read; nothing of what was read before is used then.
        """
        known, self._records = self._records, None
        examples = self._examples.news(again=known is None)
        if examples is not None:
            records = self._encoded(examples)
            self._on_change(records)
            known = split_records(records, self._evaluation_user)
        assert known is not None
        self._records = known
        return known

    def _encoded(self, examples: list[Example]) -> EncodedRecords:
        try:
            return encode_records(examples, self._card, self._tokenizer)
        except TextError:
            pass
        # Each user alone, so that who is left out depends on that user's texts only.
        mine: dict[str, list[Example]] = {}
        for example in examples:
            mine.setdefault(example.user, []).append(example)
        wrong = {user for user, those in mine.items() if not self._can_encode(those)}
        _log.warning("%d users are left out, because the base model's tokenizer fails at their texts.", len(wrong))
        return encode_records(
            [example for example in examples if example.user not in wrong], self._card, self._tokenizer
        )

    def _can_encode(self, examples: list[Example]) -> bool:
        try:
            encode_records(examples, self._card, self._tokenizer)
        except TextError:
            return False
        return True
