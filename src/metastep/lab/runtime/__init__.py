"""How long work is run: processes, locks, checkpoints, stop signals."""
