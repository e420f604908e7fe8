"""Where the cells of an experiment are run: on this machine, or over a Ray cluster."""
