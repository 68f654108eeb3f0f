"""The tenant's records as the model takes them, read anew when the source has changed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from fedprofile.client.sampling import TenantRecords, split_records
from fedprofile.client.sources import read_examples
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords, encode
from fedprofile.common.tenant import FileSource, TenantFile


class UnknownTokenizer(Protocol):
    """A tokenizer that says what it has for words it does not know."""

    @property
    def unk_token_id(self) -> int | None: ...

    def __call__(self, text: list[str], /, *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]: ...


Stamp = tuple[tuple[int, int, int], ...]


class RecordSource:
    """Reads the source at every call; files only where they have changed since the last one, SQL each time.

    Args:
        tenant: Where the data lies.
        card: What is made of it.
        folder: What relative paths count from.
        tokenizer: Of the base model.
        evaluation_user: Which users are only evaluated; `Ledger.evaluation_user`.
        on_change: Called with all records each time that the source was read, before they are used: what is stored
            of users who are gone is deleted there.
    """

    def __init__(
        self,
        *,
        tenant: TenantFile,
        card: FederationCard,
        folder: Path,
        tokenizer: UnknownTokenizer,
        evaluation_user: Callable[[str], bool],
        on_change: Callable[[EncodedRecords], None],
    ) -> None:
        self._tenant, self._card, self._folder, self._tokenizer = tenant, card, folder, tokenizer
        self._evaluation_user, self._on_change = evaluation_user, on_change
        self._stamp: Stamp | None = None
        self._records: TenantRecords | None = None

    def __call__(self) -> TenantRecords:
        """What the source holds now.

        Returns:
            The records, split by user.

        Raises:
            DataError: The source cannot be read, or rows are wrong.
        """
        stamp = self._look()
        if self._records is None or stamp is None or stamp != self._stamp:
            self._records = None
            records = encode(read_examples(self._tenant, self._card, self._folder), self._card, self._tokenizer)
            self._on_change(records)
            self._records, self._stamp = split_records(records, self._evaluation_user), stamp
        return self._records

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
