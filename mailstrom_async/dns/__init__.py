"""Looking names up: the Protocol, and the resolver that comes with the library."""
