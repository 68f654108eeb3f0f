"""Open University Learning Analytics (Kuzilek et al. 2017): who passes, or with which marks, asked early in the module?

A user is one student, with all of their enrolments; a labelled row is one enrolment, passed (Pass or Distinction) or
not (Fail or Withdrawn). The history is the student's marks. What is known is what was handed in before a day of the
module's presentation, by default a quarter of the way through it, and of earlier presentations everything; later marks
and the exam would tell the outcome. There is no date of withdrawal, so that enrolments that had ended before the day
cannot be told and stay in: the later the day, the more of the outcomes are past. Asked half-way, boosted trees reach an
AUC of 0.92. A presentation starts in February (B) or October (J) of its year; the published data have no exact day, and
the first of the month stands for it.

As a regression the label is the mean of the marks from that day on; an enrolment without any is no labelled row.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field

from fedprofile.common.config import Frozen, validate
from fedprofile.simulations.datasets.tenant_rows import (
    Adapter,
    TenantRows,
    as_tenants,
    find_file,
    read_table,
    tenant_name,
)

FOLDER = Path("oulad")
SOURCE = "OULAD (studentInfo, studentAssessment, assessments and courses)"
FILES = {
    "studentInfo.csv": ("id_student", "gender", "region", "imd_band", "age_band", "disability", "final_result"),
    "studentAssessment.csv": ("id_assessment", "id_student", "date_submitted", "score"),
    "assessments.csv": ("id_assessment", "code_module", "code_presentation", "assessment_type"),
    "courses.csv": ("code_module", "code_presentation", "module_presentation_length"),
}
ENROLMENT = ["code_module", "code_presentation", "id_student"]
MONTHS = {"B": "02", "J": "10"}
GROUPS = ("gender", "age_band", "disability", "imd_band")
LEFT_OUT = {
    "final_result": "the label, under another name",
    "region": "a tenant; and where a module is the tenant, it would hint at `imd_band`",
    "is_banked": "says only that a mark was earned in an earlier presentation; the mark is kept",
    "weight": "of an assessment, not of a student",
    "date": "the day that an assessment was due; the history goes by the day it was handed in",
    "id_assessment": "a number without meaning outside of one presentation",
}


class Options(Frozen):
    """Of the data set."""

    tenant: Literal["region", "code_module"] = "region"
    """Thirteen regions, each student at one; or seven modules, with some students at several."""
    task: Literal["binary", "regression"] = "binary"
    """Whether the module is passed, in the column `passed`; or the mean mark from 0 to 100 of what is handed in on the
    day of the prediction or later, in the column `later_mark`."""
    asked_at: float = Field(default=0.25, gt=0, lt=1)
    """The day of the prediction, as a share of the presentation's length."""


def read(data_dir: Path, options: Mapping[str, Any]) -> list[TenantRows]:
    """The enrolments. Exact duplicate rows are removed first; a mark that is missing is no event.

    `imd_band` "20-Oct" is a spreadsheet's misreading of "10-20%" and is put right. A student's group values are those
    of the first enrolment.

    Args:
        data_dir: The folder that holds `oulad/` or the CSV files themselves.
        options: See `Options`.

    Returns:
        Tenants, largest first.

    Raises:
        ConfigError: An option is not one.
        DataError: A file is not there or not the published one.
    """
    chosen = validate(dict(options), Options, "data.options")
    students, handed_in, assessments, courses = (
        read_table(find_file(data_dir, FOLDER / name, SOURCE), columns, SOURCE).drop_duplicates()
        for name, columns in FILES.items()
    )
    enrolments = students.merge(courses, on=ENROLMENT[:2])
    enrolments["start"] = _starts(enrolments)
    enrolments = enrolments.sort_values(["start", "code_module"], kind="stable", ignore_index=True)
    enrolments["imd_band"] = enrolments["imd_band"].replace({"20-Oct": "10-20%", "": "unknown"})
    for name in GROUPS:
        enrolments[name] = enrolments.groupby("id_student")[name].transform("first")
    day = (enrolments["module_presentation_length"].astype(int) * chosen.asked_at).astype(int)
    enrolments["asked"] = enrolments["start"] + pd.to_timedelta(day, "D")
    enrolments["tenant"] = enrolments[chosen.tenant]

    marks = (
        handed_in[handed_in["score"] != ""]
        .merge(assessments, on="id_assessment")
        .merge(enrolments[[*ENROLMENT, "start", "asked", "tenant"]], on=ENROLMENT)
    )
    marks["handed_in"] = marks["start"] + pd.to_timedelta(marks["date_submitted"].astype(int), "D")
    known = marks[marks["handed_in"] < marks["asked"]]
    means = known.assign(score=known["score"].astype(float)).groupby(ENROLMENT)["score"].agg(["size", "mean"])
    enrolments = enrolments.join(means, on=ENROLMENT)
    later = marks[marks["handed_in"] >= marks["asked"]]
    later_means = later.assign(score=later["score"].astype(float)).groupby(ENROLMENT)["score"].mean()
    enrolments = enrolments.join(later_means.rename("later"), on=ENROLMENT)

    passed = enrolments["final_result"].map({"Pass": "yes", "Distinction": "yes", "Fail": "no", "Withdrawn": "no"})
    visits = pd.DataFrame(
        {
            "student": "student-" + enrolments["id_student"],
            "time": enrolments["asked"].dt.strftime("%Y-%m-%d"),
            **{name: enrolments[name] for name in ("code_module", "highest_education", "num_of_prev_attempts")},
            "studied_credits": enrolments["studied_credits"],
            "marks": enrolments["size"].fillna(0).astype(int).astype(str),
            "mean_mark": enrolments["mean"].map("{:.2f}".format, na_action="ignore").fillna(""),
            **{name: enrolments[name] for name in GROUPS},
            **({"passed": passed} if chosen.task == "binary" else {"later_mark": enrolments["later"]}),
            "tenant": enrolments["tenant"],
        }
    )
    if chosen.task == "regression":
        visits = visits[visits["later_mark"].notna()]
        visits["later_mark"] = visits["later_mark"].map("{:.2f}".format)
    events = pd.DataFrame(
        {
            "student": "student-" + marks["id_student"],
            "time": marks["handed_in"].dt.strftime("%Y-%m-%d"),
            **{name: marks[name] for name in ("code_module", "assessment_type", "score", "tenant")},
        }
    )
    kind = "module" if chosen.tenant == "code_module" else "region"
    names = {value: f"{kind}-{tenant_name(value.removesuffix(' Region'))}" for value in visits["tenant"].unique()}
    return as_tenants(visits, "tenant", names, events)


def _starts(table: pd.DataFrame) -> pd.Series:
    """The day that stands for the start of each row's presentation, such as 2013-10-01 for 2013J."""
    code = table["code_presentation"]
    return pd.to_datetime(code.str[:4] + "-" + code.str[4:].map(MONTHS) + "-01")


ADAPTER = Adapter("education", "a student", GROUPS, LEFT_OUT, read, {"regression": "education-mark"})
