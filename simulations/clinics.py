"""Generated patients: visit histories at clinics, and a known rule for who comes to an unplanned hospital stay.

Everything comes from one seed, and nobody is in it. Each tenant is a clinic with its own mix of conditions. A patient
has one long-term condition or none, visits whose findings get better or worse, and is asked about after the last
visit. The outcome depends on how many findings were bad, which is in the text alone, on the condition, and on two
numeric columns. Sex and age band are for audits; age enters the rule, so that a model without it cannot be perfect.
"""

import csv
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from fedprofile.simulations.randomness import derived_seed

CONDITIONS: dict[str, tuple[str, ...]] = {
    "none": ("vaccination", "back pain", "check-up", "sore throat", "travel advice"),
    "heart": ("chest pain", "high blood pressure", "palpitations", "swollen ankles", "short of breath"),
    "lung": ("cough", "asthma attack", "short of breath", "inhaler review", "chest infection"),
    "sugar": ("blood sugar review", "foot ulcer", "blurred vision", "insulin review", "thirst"),
}
WEIGHTS = {"none": -0.8, "heart": 0.7, "lung": 0.3, "sugar": 0.2}
WORSE = ("getting worse", "not under control", "referred urgently")
BETTER = ("improving", "under control", "no finding")
SEXES = ("female", "male")
AGES = ("18-39", "40-64", "65+")
START = datetime(2025, 1, 1, tzinfo=UTC)

EVENT_COLUMNS = ("patient", "time", "reason", "finding")
VISIT_COLUMNS = ("patient", "time", "missed", "medicines", "sex", "age", "admitted")


@dataclass(frozen=True)
class Clinic:
    """One tenant.

    Args:
        name: Of the tenant.
        patients: How many.
        mix: Probability of each condition, in the order of `CONDITIONS`.
    """

    name: str
    patients: int
    mix: tuple[float, float, float, float]


CLINICS = (
    Clinic("harbour-practice", 1200, (0.4, 0.3, 0.2, 0.1)),
    Clinic("hill-practice", 1000, (0.5, 0.2, 0.1, 0.2)),
    Clinic("heart-centre", 800, (0.1, 0.7, 0.1, 0.1)),
    Clinic("lung-centre", 700, (0.1, 0.1, 0.7, 0.1)),
    Clinic("diabetes-centre", 600, (0.1, 0.1, 0.1, 0.7)),
    Clinic("valley-practice", 500, (0.5, 0.2, 0.2, 0.1)),
)


def write_clinic(clinic: Clinic, folder: Path, seed: int) -> None:
    """Generate one tenant's data.

    Args:
        clinic: Which.
        folder: Where `visits.csv` (the labelled rows) and `events.csv` (what came before) are written.
        seed: Of the whole population.
    """
    draw = np.random.Generator(np.random.Philox(derived_seed(seed, "clinics", clinic.name)))
    conditions = list(CONDITIONS)
    with (
        (folder / "visits.csv").open("w", newline="", encoding="utf-8") as asked_file,
        (folder / "events.csv").open("w", newline="", encoding="utf-8") as events_file,
    ):
        asked, events = csv.writer(asked_file), csv.writer(events_file)
        asked.writerow(VISIT_COLUMNS)
        events.writerow(EVENT_COLUMNS)
        for number in range(clinic.patients):
            patient = f"{clinic.name}-{number:05d}"
            condition = str(draw.choice(conditions, p=clinic.mix))
            frailty = float(draw.beta(1.2, 2.0))
            moment = START + timedelta(days=float(draw.integers(0, 300)))
            for _ in range(int(draw.integers(2, 8))):
                about = condition if draw.random() < 0.8 else str(draw.choice(conditions))
                finding = str(draw.choice(WORSE if draw.random() < frailty else BETTER))
                events.writerow((patient, moment.isoformat(), str(draw.choice(CONDITIONS[about])), finding))
                moment += timedelta(days=float(draw.integers(1, 60)))
            missed = int(draw.geometric(0.5)) - 1
            medicines = int(draw.poisson(1.0 if condition == "none" else 4.0))
            sex = SEXES[int(draw.random() < 0.48)]
            age = str(draw.choice(AGES, p=(0.3, 0.4, 0.3)))
            logit = -3.6 + 4.5 * frailty + WEIGHTS[condition] + 0.3 * min(missed, 4) + 0.08 * medicines
            logit += {"18-39": -0.5, "40-64": 0.0, "65+": 0.6}[age]
            admitted = draw.random() < 1 / (1 + math.exp(-logit))
            asked.writerow((patient, moment.isoformat(), missed, medicines, sex, age, "yes" if admitted else "no"))
