"""Builds the documentation site: ``python -m docs_site``, which is what ``make docs`` calls.

``stage`` lays out what zensical reads, ``equations`` draws the mathematics, ``docstrings`` lets docstrings be pages,
``notebooks`` runs and shows the notebooks, ``check`` reads the finished site. The pages themselves are in ``docs/``.
"""
