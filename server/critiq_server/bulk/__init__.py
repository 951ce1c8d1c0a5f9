"""Scoring a great many pictures, resumably: ``critiq bulk``.

``inputs`` finds the rows and cuts them into units; an engine (``local``, ``ray_engine``) has workers that turn a unit
into a part of the output; the ``ledger`` knows which are done.
"""
