"""What is left to a person, added to a table of the tenant's own database.

Rows are added in one transaction, or none is; nothing else is read or written there. pandas makes the table where there
is none. What a driver says of a failure may hold rows, so that none of it is passed on.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy

from fedprofile.client.databases import database_url
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.tenant import TableSpec

COLUMNS = ("added", "card", "adapter", "round", "user", "likeliest", "probability", "because", "history")


def add_reviews(spec: TableSpec, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to the table.

    Args:
        spec: The tenant file's `[judgement.review]`.
        folder: What relative paths count from.
        rows: Of `COLUMNS` without the time, the least sure first.

    Raises:
        ConfigError: The table cannot be written; then no row was added.
    """
    if not rows:
        return
    now = datetime.now(UTC).replace(microsecond=0)
    frame = pd.DataFrame([{"added": now, **row} for row in rows], columns=list(COLUMNS))
    try:
        engine = sqlalchemy.create_engine(
            database_url(spec, folder), poolclass=sqlalchemy.NullPool, hide_parameters=True
        )
        with engine.begin() as connection:
            frame.to_sql(spec.table, connection, if_exists="append", index=False)
    except DataError as error:
        raise ConfigError(f"judgement.review: {error}") from None
    except (sqlalchemy.exc.SQLAlchemyError, pd.errors.DatabaseError, ValueError, ImportError) as error:
        raise ConfigError(
            f"judgement.review: table '{spec.table}' cannot be written ({type(error).__name__}); check the URL, the "
            f"rights of its user, and that the table has the columns {', '.join(COLUMNS)}. No row was added."
        ) from None
