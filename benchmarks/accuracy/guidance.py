"""Whether a plan made without guidance still helps under it: the third part of `benchmarks.accuracy.accuracy`."""

from __future__ import annotations

import sdegen as sd

from .ours import PILOTS, planned
from .page import Table
from .problems import GUIDED, PROBLEMS, PROCESSES
from .runs import RIVAL, of_peers, ours
from .summary import cell

BUDGETS = 10, 20


def section() -> str:
    """Errors on `digits` under guidance: peers, ours, plans of the unguided model and of the guided one."""
    parts = [
        "### Plans under guidance\n\n`digits` with classifier-free guidance of weight 2.5 towards five of its 20 "
        "components. A plan made on the unguided model is used as it is, beside one made on the guided model."
    ]
    for name, process in PROCESSES.items():
        out = Table([f"method, {name}", *(str(n) for n in BUDGETS)])
        peers = of_peers(GUIDED, process, BUDGETS)
        best = {n: min((row[n], who) for who, row in peers.items() if n in row) for n in BUDGETS}
        out.add("best peer", *(f"{cell(best[n][0])}: {', '.join(best[n][1])}" for n in BUDGETS))
        out.add(", ".join(RIVAL), *(cell(peers[RIVAL][n]) for n in BUDGETS))
        default = sd.default()
        out.add("**`default()`**", *(cell(ours(default, GUIDED, process, default.grid, n)) for n in BUDGETS))
        for kind, source in (("unguided", PROBLEMS["digits"]), ("guided", GUIDED)):
            if not hasattr(sd, "calibrate"):
                continue
            for pilot in PILOTS:
                cells = []
                for n in BUDGETS:
                    model = source.model(process)
                    plan = planned(model, source, n, pilot)
                    cells.append(cell(ours(plan, GUIDED, process, plan.grid, n)))
                out.add(f"**plan of the {kind} model, pilot {pilot}**", *cells)
        parts.append(str(out))
    return "\n\n".join(parts)
