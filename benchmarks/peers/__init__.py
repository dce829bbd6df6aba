"""What the library's own checks say of other libraries' samplers: `python -m benchmarks.peers.orders`."""
