"""Meta-gradients are tried over every kind of optimizer, whatever the scale of the rate is made for."""

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.filterwarnings("ignore:.* measures the scale of its rate by a rule for sgd"))
