"""Builds the documentation site: ``python -m docs_site``, which is what ``make docs`` calls.

``stage`` lays out what zensical reads, ``equations`` draws the mathematics, ``names`` keeps short code in one piece,
``docstrings`` lets docstrings be pages, ``notebooks`` runs and shows the notebooks, ``check`` reads the finished site.
The pages themselves are in ``docs/``.

A new page needs a line in the navigation of ``mkdocs.yml``. Its Python runs in tests/docs as it stands, unless a
comment before the block says what it needs: ``<!-- needs: gpu -->``. ``<!-- names: metastep.room -->`` becomes the
entries of all public names of that module, ``<!-- table: metastep.room.module -->`` what its ``table()`` returns.
``$x$`` and ``$$`` are equations. Links may leave ``docs/`` for any file of the repository.
"""
