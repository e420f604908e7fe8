"""Data sets and the tasks on them; a file's `TASKS` are its entries in the table of tasks."""
