"""The built-in population: generated shop visitors with interests, histories and a known rule for who buys.

Everything comes from one seed. Each tenant is a shop with its own mix of interests; a visitor has one interest, an
event history drawn around it, and a labelled last visit. Whether the visit ends in a purchase depends on what the
history shows (how much of it is about the shop's season, in words that only text carries) and on the numeric
columns, so that neither text nor columns alone tell everything.
"""

import csv
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from fedprofile.simulations.randomness import derived_seed

INTERESTS: dict[str, tuple[str, ...]] = {
    "outdoor": ("hiking boots", "rain jacket", "camping tent", "trekking poles", "sleeping bag"),
    "kitchen": ("cast iron pan", "espresso machine", "bread knife", "stand mixer", "spice rack"),
    "games": ("racing wheel", "board game", "puzzle set", "wireless controller", "card deck"),
    "garden": ("rose seeds", "garden hose", "lawn mower", "bird feeder", "terracotta pot"),
}
EAGER = ("carted", "compared", "reserved")
IDLE = ("viewed", "skipped", "searched")
REGIONS = ("north", "south")
DEVICES = ("phone", "desktop", "tablet")
START = datetime(2026, 1, 1, tzinfo=UTC)

EVENT_COLUMNS = ("visitor", "time", "action", "item")
VISIT_COLUMNS = ("visitor", "time", "device", "visits", "minutes", "region", "bought")


@dataclass(frozen=True)
class Shop:
    """One tenant of the built-in population.

    Args:
        name: Of the tenant.
        visitors: How many.
        mix: Probability of each interest, in the order of `INTERESTS`.
    """

    name: str
    visitors: int
    mix: tuple[float, float, float, float]


SHOPS = (
    Shop("alpine-outfitters", 1500, (0.7, 0.1, 0.1, 0.1)),
    Shop("city-kitchen", 1200, (0.1, 0.7, 0.1, 0.1)),
    Shop("game-corner", 1000, (0.1, 0.1, 0.7, 0.1)),
    Shop("green-thumb", 800, (0.1, 0.1, 0.1, 0.7)),
)


def write_shop(shop: Shop, folder: Path, seed: int) -> None:
    """Generate one tenant's data.

    Args:
        shop: Which.
        folder: Where `visits.csv` (the labelled rows) and `events.csv` (what came before) are written.
        seed: Of the whole population.
    """
    draw = np.random.Generator(np.random.Philox(derived_seed(seed, "population", shop.name)))
    interests = list(INTERESTS)
    with (
        (folder / "visits.csv").open("w", newline="", encoding="utf-8") as visits_file,
        (folder / "events.csv").open("w", newline="", encoding="utf-8") as events_file,
    ):
        visits, events = csv.writer(visits_file), csv.writer(events_file)
        visits.writerow(VISIT_COLUMNS)
        events.writerow(EVENT_COLUMNS)
        for number in range(shop.visitors):
            visitor = f"{shop.name}-{number:05d}"
            interest = str(draw.choice(interests, p=shop.mix))
            eagerness = float(draw.beta(1.2, 2.0))
            moment = START + timedelta(minutes=float(draw.integers(0, 60 * 24 * 300)))
            for _ in range(int(draw.integers(2, 7))):
                action = str(draw.choice(EAGER if draw.random() < eagerness else IDLE))
                about = interest if draw.random() < 0.8 else str(draw.choice(interests))
                events.writerow((visitor, moment.isoformat(), action, str(draw.choice(INTERESTS[about]))))
                moment += timedelta(minutes=float(draw.integers(1, 60 * 24)))
            earlier = int(draw.geometric(0.3)) - 1
            minutes = round(float(draw.gamma(2.0, 4.0)), 1)
            region = REGIONS[int(draw.random() < 0.35)]
            device = str(draw.choice(DEVICES, p=(0.6, 0.3, 0.1)))
            logit = -3.4 + 4.5 * eagerness + 0.25 * min(earlier, 8) + 0.8 * math.log1p(minutes / 4)
            logit += {"phone": -0.4, "desktop": 0.3, "tablet": 0.0}[device]
            bought = draw.random() < 1 / (1 + math.exp(-logit))
            row = (visitor, moment.isoformat(), device, earlier, minutes, region, "yes" if bought else "no")
            visits.writerow(row)
