"""How the link's tables change, a file a revision; :mod:`asterion_server.link_migration` runs them.

A revision's number is one more than the one before. A change of ``link_tables.py`` needs a new one,
and ``link_tables.REVISION`` names the newest. On SQLite a revision may add tables, columns and
indices; a column that changes means a new table, since foreign keys hold meanwhile.
"""
