"""How many cases Hypothesis generates: the same few in every run, or, with SDEGEN_TESTS=deep, many and new ones."""

from __future__ import annotations

import os

from hypothesis import Phase, settings

PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
settings.register_profile("suite", derandomize=True, deadline=None, database=None, phases=PHASES)
settings.register_profile("deep", deadline=None, database=None, max_examples=1000, print_blob=True, phases=PHASES)
settings.load_profile("deep" if os.environ.get("SDEGEN_TESTS") == "deep" else "suite")
