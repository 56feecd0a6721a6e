"""The Playground's tools, a file each. A new one is one word here."""

from interlace_server.page.tools import denoise, lens, patch, steer, trace
from interlace_server.page.tools.base import Tool

TOOLS: dict[str, Tool] = {module.TOOL.name: module.TOOL for module in (lens, trace, patch, steer, denoise)}
