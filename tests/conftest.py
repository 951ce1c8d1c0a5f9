from __future__ import annotations

import os

# Settings of the developer's own server must not change what is tested, here or in the servers that tests start.
for _name in [name for name in os.environ if name.upper().startswith("CRITIQ_")]:
    del os.environ[_name]
