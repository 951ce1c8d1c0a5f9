"""critiq on Ray Serve: many replicas of the server on many machines, behind Ray's own ingress.

``application.py`` is what ``serve deploy`` imports. A replica (``replica.py``) is a whole server; it also listens by
itself, and ``directory.py`` knows where. ``ingress.py`` and ``http_ingress.py`` run in Ray's proxies.
"""
