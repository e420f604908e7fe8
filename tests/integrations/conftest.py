"""As in tests/meta: learned schedules whose scale is for SGD are tried over other optimizers."""

from tests.meta.conftest import _rates_for_sgd

__all__ = ["_rates_for_sgd"]
