"""The rows of the table of methods, by kind."""
