"""Ranks are tried with every kind of optimizer, whatever the scale of the rate is made for."""

from tests.meta.conftest import pytest_itemcollected

__all__ = ["pytest_itemcollected"]
