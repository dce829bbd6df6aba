"""The audit: what a network is, what it was taken for, and what is wrong with it."""
