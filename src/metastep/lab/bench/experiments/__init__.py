"""The experiments that can be named: one table, a file a family."""
