"""From records to plots, tables and pages."""
