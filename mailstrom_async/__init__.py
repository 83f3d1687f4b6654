"""The outbound half of a mail server as an asyncio library."""

__version__ = "0.1.0"
