"""Where the queue is kept: the Protocol, and the stores that come with the library."""
