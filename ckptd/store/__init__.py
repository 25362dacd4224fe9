"""Where bytes are durable: one small protocol, its drivers and the wrappers around them."""
