"""AdaBound (arXiv 1902.09843): Adam whose rates are bounded ever more closely by that of SGD."""

import pytorch_optimizer


class AdaBound(pytorch_optimizer.AdaBound):
    """AdaBound of the package ``pytorch_optimizer``."""
