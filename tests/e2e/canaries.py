"""Values that occur nowhere else, in every column of a tenant's data, and every form in which they might travel."""

import base64
import csv
import hashlib
import random
import struct
from datetime import UTC, datetime
from pathlib import Path

USERS = 40
HEADER = ("who", "when", "month", "visits", "device", "action", "item", "where", "bought", "note")
MOMENT = datetime(2019, 3, 17, 4, 11, 7, tzinfo=UTC)
VISITS = tuple(1.0007193 + 1.1931 * place for place in range(7))


class Canaries:
    """The canaries of one tenant.

    Args:
        tenant: Its name, which every text carries, so that what is found tells whose it is.
    """

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.users = [self.text("user", number) for number in range(USERS)]

    def text(self, column: str, number: int = 0) -> str:
        """A canary for a column of texts."""
        return f"canary-{self.tenant}-{column}-{number:04d}"

    def write(self, path: Path, *, wrong: bool = False, without: int | None = None) -> None:
        """Write data.

        Args:
            path: The CSV file.
            wrong: Add a user whose label is not of the card, and one whose time is none.
            without: Leave this user out.
        """
        draw = random.Random(self.tenant)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            for number, user in enumerate(self.users):
                texts = [self.text(column, number % 3) for column in ("month", "device", "action", "item", "where")]
                row = [user, MOMENT.isoformat(), texts[0], draw.choice(VISITS), *texts[1:]]
                label = draw.choice(["yes", "no"])
                if number != without:
                    writer.writerow([*row, label, self.text("note")])
            if wrong:
                writer.writerow([self.text("other"), *row[1:], self.text("label"), ""])
                writer.writerow([self.text("another"), self.text("time"), *row[2:], "yes", ""])

    def found_in(self, heard: bytes) -> set[str]:
        """Which canaries are in some bytes, in any form.

        Args:
            heard: What was recorded.

        Returns:
            The forms that were found, each with its canary.
        """
        lower = heard.lower()
        found = set()
        for text in ("canary-" + self.tenant, *self.users):
            for form, value in _forms_of_text(text).items():
                if value in heard or value.lower() in lower:
                    found.add(f"{form} of {text}")
        for number in VISITS:
            for form, value in _forms_of_number(number).items():
                if value in heard:
                    found.add(f"{form} of {number}")
        for form, value in _forms_of_moment().items():
            if value in heard:
                found.add(f"{form} of the time")
        return found


def _forms_of_text(text: str) -> dict[str, bytes]:
    raw = text.encode()
    forms = {
        "text": raw,
        "text backwards": raw[::-1],
        "utf-16": text.encode("utf-16-le"),
        "hexadecimal": raw.hex().encode(),
    }
    for skip in range(3):
        # Base64 depends on where in a group of three bytes the text begins; what its neighbours decide is cut off.
        coded = base64.b64encode(bytes(skip) + raw)
        forms[f"base64 from {skip}"] = coded[4 if skip else 0 : len(coded) - 4]
    for name in ("md5", "sha1", "sha256", "blake2b"):
        digest = hashlib.new(name, raw, usedforsecurity=False)
        forms[name] = digest.digest()
        forms[f"{name} in hexadecimal"] = digest.hexdigest().encode()
    return forms


def _forms_of_number(number: float) -> dict[str, bytes]:
    forms = {"text": repr(number).encode(), "short text": f"{number:.5f}".encode()}
    for name, value in (("number", number), ("position", number / 10)):
        forms[f"{name} as float64"] = struct.pack("<d", value)
        forms[f"{name} as float64, big end first"] = struct.pack(">d", value)
        # A row of fused features: the position, and a device that the card does not list. Four bytes alone occur by
        # chance in a megabyte of noise.
        forms[f"{name} as float32 in a row of features"] = struct.pack("<3f", value, 0.0, 0.0)
    return forms


def _forms_of_moment() -> dict[str, bytes]:
    seconds = MOMENT.timestamp()
    return {
        "text": MOMENT.isoformat()[:19].encode(),
        "date": MOMENT.date().isoformat().encode(),
        "seconds": f"{seconds:.0f}".encode(),
        "float64": struct.pack("<d", seconds),
        "int64": struct.pack("<q", int(seconds)),
        "nanoseconds": struct.pack("<q", int(seconds) * 10**9),
    }
