"""``python -m metastep`` is the command ``metastep``."""

from metastep.cli import main

if __name__ == "__main__":
    main()
