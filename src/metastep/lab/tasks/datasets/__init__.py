"""The entries of the table of tasks, by what is read."""
