"""Optimizers of other packages, each imported only when it is made.

What every one of them is taught: to say which rate it applied (``applied_rate``), to keep all that a resumed run needs
in its ``state_dict``, to print nothing, and, where it averages its iterates, to show the average without a trace
(``averaged``).
"""
