"""Where methods meet tasks: runs, records, scores."""
