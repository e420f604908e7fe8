"""From records to plots, tables and pages."""

from metastep.report.page import write_page
from metastep.report.plots import rate_plot, write_plots
from metastep.report.records import Record, read_records
from metastep.report.summary import Spread, SummaryRow, summarize
from metastep.report.verdict import verdict

__all__ = [
    "Record",
    "Spread",
    "SummaryRow",
    "rate_plot",
    "read_records",
    "summarize",
    "verdict",
    "write_page",
    "write_plots",
]
