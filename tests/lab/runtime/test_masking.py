"""The password of a storage is nowhere to be read."""

import sys

import pytest

from metastep.lab.runtime.passwords import without_password, without_password_of
from metastep.lab.runtime.provenance import provenance


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://ann:{}@host:5432/trials",
        "mysql://ann:{}@host/trials?charset=utf8",
        "postgresql://host/trials?user=ann&password={}&sslmode=require",
        "redis://:{}@host/0",
    ],
)
@pytest.mark.parametrize("password", ["s3cr3t", "s3cr3t/w0rd", "s3cr3t:w0rd", "s3cr3t%40w0rd"])
def test_a_command_is_recorded_without_it(url, password, monkeypatch):
    given = url.format(password)
    monkeypatch.setattr(sys, "argv", ["metastep", "compare", "field/small", "--storage", given, f"--storage={given}"])
    command = provenance("cpu")["command"]
    assert "s3cr3t" not in command
    assert "w0rd" not in command
    assert command.count(url.format("***").partition("?")[0]) == 2


def test_an_at_sign_within_it_gives_no_part_of_it_away():
    url = "postgresql://ann:s3cr3t@w0rd@host/trials"
    assert without_password(url) == "postgresql://ann:***@host/trials"
    said = without_password_of(url, f"failed to resolve host 'w0rd@host' of {url}")
    assert said == "failed to resolve host '***@host' of postgresql://ann:***@host/trials"


def test_a_url_without_one_stays_as_it_is():
    for url in ("sqlite:///trials.db", "postgresql://ann@host:5432/trials", "postgresql://host/trials"):
        assert without_password(url) == without_password_of(url, url) == url
