"""The tenant's records as the model takes them, read anew when the source has changed."""

from collections.abc import Callable
from pathlib import Path

from fedprofile.client.sampling import TenantRecords, split_records
from fedprofile.client.sources import read_examples
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords, Example, Tokenizer, encode
from fedprofile.common.tenant import FileSource, TenantFile

Stamp = tuple[tuple[int, int, int], ...]


class ExampleSource:
    """Reads and checks the source; files only where they have changed since, SQL each time.

    Args:
        tenant: Where the data lies.
        card: What is made of it.
        folder: What relative paths count from.
    """

    def __init__(self, tenant: TenantFile, card: FederationCard, folder: Path) -> None:
        self._tenant, self._card, self._folder = tenant, card, folder
        self._stamp: Stamp | None = None
        self._waiting: list[Example] | None = None

    def validate(self) -> None:
        """Read the source now, for the next `news`.

        Raises:
            DataError: It cannot be read, or rows are wrong.
        """
        self._waiting = self.news()

    def news(self, again: bool = False) -> list[Example] | None:
        """What the source holds.

        Args:
            again: Also where nothing has changed.

        Returns:
            The examples; None where they are those that were given before.

        Raises:
            DataError: The source cannot be read, or rows are wrong.
        """
        stamp, waiting = self._look(), self._waiting
        self._waiting = None
        if stamp is not None and stamp == self._stamp and (waiting is not None or not again):
            return waiting
        self._stamp = None
        examples = read_examples(self._tenant, self._card, self._folder)
        self._stamp = stamp
        return examples

    def _look(self) -> Stamp | None:
        """What tells that a file has changed; None where only reading tells."""
        sources = [source for source in (self._tenant.source, self._tenant.events) if source is not None]
        stamps = []
        for source in sources:
            if not isinstance(source, FileSource):
                return None
            try:
                found = (self._folder / source.path).stat()
            except OSError:
                return None  # Reading says what is wrong.
            stamps.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return tuple(stamps)


class RecordSource:
    """The source's records, split by user.

    Args:
        examples: Reads the source.
        card: What is made of it.
        tokenizer: Of the base model.
        evaluation_user: Which users are only evaluated; `Ledger.evaluation_user`.
        on_change: Called with all records each time that the source was read, before they are used: what is stored
            of users who are gone is deleted there.
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
            The records, split by user.

        Raises:
            DataError: The source cannot be read, or rows are wrong; nothing of what was read before is used then.
        """
        known, self._records = self._records, None
        examples = self._examples.news(again=known is None)
        if examples is not None:
            records = encode(examples, self._card, self._tokenizer)
            self._on_change(records)
            known = split_records(records, self._evaluation_user)
        assert known is not None
        self._records = known
        return known
