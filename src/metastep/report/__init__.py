"""From records to plots, tables and pages."""

from metastep.report.experiment import Cell, Experiment, Interval, Profile, Published, Scores, Sensitivity
from metastep.report.experiment_page import write_experiment_page
from metastep.report.experiment_text import as_csv, as_markdown
from metastep.report.page import write_page
from metastep.report.plots import rate_plot, write_plots
from metastep.report.records import Record, read_records
from metastep.report.summary import Spread, SummaryRow, summarize
from metastep.report.verdict import verdict

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
