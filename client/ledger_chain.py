"""The ledger's hash chains: which hash covers what.

Four chains. Those of the budgets, the segments and the notes of what was released start at a hash of the population, so
that nothing of it, the users' column and the split's key included, can change below them. The chain of the entries
holds, in each entry, the newest hash of the other three; so the entry's own hash, which travels with the reply and is
kept in the outbox and in the marks, covers all that was promised and released up to then.

None of this needs a secret that a person who edits the file would not find in it. Whoever writes every hash anew gets a
ledger that fits itself, and neither the marks beside it nor what the server has seen.

Why every entry has a salt: the chain's hash travels with the reply, and all else that it covers can be guessed. Without
the salt a server could try each second, sample rate and run number until the hash fits, and so learn when the
reservation was made (which follows from how long the data took to read) and how a tenant samples. With 16 secret random
bytes in each hash it can only compare: the same hash is the same history. The other three chains never travel by
themselves, and need none.
"""

import hashlib
import json
from collections.abc import Iterable

from fedprofile.common.messages import GENESIS


def chained(previous: str, **values: object) -> str:
    """The chain's next hash.

    Args:
        previous: The hash before; `GENESIS` for the first entry, the population's hash for the first of other rows.
        values: All fields of the row but its `head`.

    Returns:
        SHA-256 over both.
    """
    body = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


def chain_holds(rows: Iterable[dict[str, object]], start: str = GENESIS) -> bool:
    """Whether every row's hash covers what stands before it.

    Args:
        rows: All of one table, in their order, with all fields.
        start: What the first row's hash is made from.
    """
    head = start
    for row in rows:
        head = chained(head, **{name: value for name, value in row.items() if name != "head"})
        if head != row["head"]:
            return False
    return True


def population_hash(form: int, name: str, user_column: str, evaluation_users: float, key: bytes) -> str:
    """A hash of what is fixed when a ledger is made; of the split's key only that it is the same.

    Args:
        form: The file's format.
        name: The population's.
        user_column: Says whose a row is.
        evaluation_users: Fraction of users who are only evaluated.
        key: Of the split, 32 random bytes.

    Returns:
        64 hexadecimal digits.
    """
    return chained(
        GENESIS,
        format=form,
        name=name,
        user_column=user_column,
        evaluation_users=evaluation_users,
        key=hashlib.sha256(key).hexdigest(),
    )
