"""Speaking SMTP: the Protocol, and the sessions that come with the library."""
