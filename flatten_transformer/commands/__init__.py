"""The commands of ``flatten``: ``flatten a-b`` is ``a_b`` in a_b.py, ``flatten a b`` is ``b`` in a_b.py."""
