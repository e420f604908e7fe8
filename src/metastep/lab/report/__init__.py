"""From records to plots, tables and pages."""

from metastep.lab.report.experiment import Cell, Experiment, Interval, Profile, Published, Scores, Sensitivity
from metastep.lab.report.experiment_page import write_experiment_page
from metastep.lab.report.experiment_text import as_csv, as_markdown
from metastep.lab.report.page import write_page
from metastep.lab.report.plots import rate_plot, write_plots
from metastep.lab.report.records import Record, read_records
from metastep.lab.report.summary import Spread, SummaryRow, summarize
from metastep.lab.report.verdict import verdict

__all__ = [
    "Cell",
    "Experiment",
    "Interval",
    "Profile",
    "Published",
    "Record",
    "Scores",
    "Sensitivity",
    "Spread",
    "SummaryRow",
    "as_csv",
    "as_markdown",
    "rate_plot",
    "read_records",
    "summarize",
    "verdict",
    "write_experiment_page",
    "write_page",
    "write_plots",
]
