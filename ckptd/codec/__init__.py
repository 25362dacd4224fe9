"""How raw bytes become stored bytes, and the hash that every frame carries (PROTOCOLS 3)."""
