"""``metastep list methods`` shows the table of the benchmark's methods."""

from metastep.lab.bench.methods import METHODS


def test_the_methods_are_listed_with_what_they_tune(metastep) -> None:
    methods = metastep("list", "methods", "--json").json["methods"]
    assert methods.keys() == METHODS.keys()
    assert methods["adamw/warmup-cosine"].endswith("tunes lr 1e-5 .. 0.1, log (1e-3); warmup 0 .. 0.2 (0.05)")
    shown = metastep("list", "methods", "--all").out
    assert all(name in shown for name in METHODS)
