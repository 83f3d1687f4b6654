"""Looking names up: the Protocol, and the resolver that comes with the library."""

from mailstrom_async.dns.aiodns import AiodnsResolver
from mailstrom_async.dns.base import MX, AddressAnswer, IPAddress, MXAnswer, Resolver

__all__ = ["MX", "AddressAnswer", "AiodnsResolver", "IPAddress", "MXAnswer", "Resolver"]
