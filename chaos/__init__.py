"""Real servers to break, and the breaking of them."""
