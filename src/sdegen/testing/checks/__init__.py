"""The suites of properties: solvers, processes, score models, noise sources, SDEs."""
