"""critiq's nodes for ComfyUI: put this folder into ``custom_nodes`` and install the client: ``pip install critiq``."""

from . import server  # noqa: F401  first: it says what to install where the client is missing
from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
