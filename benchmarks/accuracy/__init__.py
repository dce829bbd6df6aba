"""Error per network evaluation against exact flows, ours and the peers': `python -m benchmarks.accuracy.accuracy`."""
