"""From records to one page, tables and pictures."""

from metastep.lab.report.page import write_page, write_pictures, write_rate_picture
from metastep.lab.report.results import Group, PaperFigure, Results, Run, Sensitivity, read_results
from metastep.lab.report.scores import Interval
from metastep.lab.report.tables import as_csv, as_markdown
from metastep.lab.report.verdict import verdict

__all__ = [
    "Group",
    "Interval",
    "PaperFigure",
    "Results",
    "Run",
    "Sensitivity",
    "as_csv",
    "as_markdown",
    "read_results",
    "verdict",
    "write_page",
    "write_pictures",
    "write_rate_picture",
]
