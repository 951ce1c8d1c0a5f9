"""The page to look at: its files lie in ``static``, ``api/page.py`` serves them."""
