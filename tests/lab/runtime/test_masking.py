"""The secrets of a storage URL are nowhere to be read: not in records, nor in messages, however they are written."""

import builtins
import sys

import pytest

from metastep.lab.runtime.masking import masked, masked_message
from metastep.lab.runtime.provenance import provenance

#: URLs with the secret as {}; the places where drivers are known to take one.
FORMS = [
    "postgresql+psycopg://ann:{}@host:5432/trials",
    "mysql://ann:{}@host/trials?charset=utf8",
    "redis://:{}@host/0",
    "postgresql://ann%3A{}@host/trials",
    "postgresql://ann%3A{}%40host/trials",
    "postgresql://host/trials?user=ann&password={}&sslmode=require",
    "postgresql://host/trials?passwd={}",
    "postgresql://host/trials?pwd={}",
    "postgresql://host/trials?PASSWORD={}",
    "postgresql://host/trials?sslpassword={}",
    "postgresql://host/trials?pass={}",
    "postgresql://host/trials?token={}",
    "postgresql://host/trials?auth={}",
    "postgresql://host/trials?key={}",
    "postgresql://host/trials?api_key={}&secret={}",
    "postgresql://host/trials?options=-c%20password%3D{}",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BODBC%7D%3BSERVER%3Dhost%3BUID%3Dann%3BPWD%3D{}",
    "mssql+pyodbc://host/trials;PWD={}",
    "mssql+pyodbc://SERVER=host;PWD={}",
    "postgresql://ann:{}@host:port/trials",
    "postgresql://ann:{} @host/trials",
    " postgresql://ann:{}@host/trials",
    "postgresql://ann:{}@host/trials?user=ann;password={}",
    "snowflake://ann:{}@account/trials?private_key={}",
]
forms = pytest.mark.parametrize("form", FORMS)
secrets = pytest.mark.parametrize(
    "secret", ["s3cr3t", "s3cr3t/w0rd", "s3cr3t:w0rd", "s3cr3t%40w0rd", "s3cr3t@w0rd", "s3cr3t w0rd", "s3cr3t+w0rd"]
)


def hidden(text: str) -> bool:
    return "s3cr3t" not in text and "w0rd" not in text


@forms
@secrets
def test_a_command_is_recorded_without_it(form, secret, monkeypatch):
    url = form.replace("{}", secret)
    monkeypatch.setattr(sys, "argv", ["metastep", "experiment", "field/small", "--storage", url, f"--storage={url}"])
    command = provenance("cpu")["command"]
    assert hidden(command)
    assert command.startswith("metastep experiment field/small --storage ")
    assert command.count("://") == 2


@forms
@secrets
def test_a_message_of_a_driver_is_shown_without_it(form, secret):
    url = form.replace("{}", secret)
    for said in (f"cannot open {url}", f"password {secret!r} is wrong", f"no host {secret.rpartition('@')[2]}@host"):
        assert hidden(masked_message(url, said))


@forms
def test_a_masked_url_is_masked_already(form):
    once = masked(form.replace("{}", "s3cr3t"))
    assert masked(once) == once


def test_a_short_secret_is_not_guessed_from_what_is_left_of_a_message():
    assert "withheld" in masked_message("postgresql://ann:a@host/trials", "a bad day")


def test_without_sqlalchemy_only_the_scheme_is_shown(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("sqlalchemy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert masked("--storage=postgresql://ann:s3cr3t@host/trials") == "--storage=postgresql://***"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///trials.db",
        "sqlite:///runs/a=b/trials.db",
        "postgresql://ann@host:5432/trials",
        "postgresql://host/trials?sslmode=require",
        "digits/mlp",
        "--out=runs/a@b",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text):
    assert masked(text) == text
    assert masked_message(text, f"cannot open {text}") == f"cannot open {text}"
