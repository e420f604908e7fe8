"""The networks of the tasks: each takes the number of classes, and sizes as keywords."""
