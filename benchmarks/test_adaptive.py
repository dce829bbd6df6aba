"""What adaptive steps cost beside the network, and what a queue saves, beside torchode and torchdiffeq.

`make bench` prints medians; compare within a group. `python -m benchmarks.adaptive` has what an error costs.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.adaptive import cost, queue


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", cost.SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("name", list(cost.runs()))
def test_a_whole_solve_with_a_network_of_nothing(benchmark, name, shape):
    """Attempts and calls are in the extra info: divide by them."""
    benchmark.group = f"adaptive solve, x {list(shape)}, tol {cost.TOL:g}"
    run, x = cost.runs()[name], cost.start(shape)
    benchmark.extra_info.update(run(x)._asdict())
    benchmark.pedantic(run, (x,), rounds=3)


@pytest.mark.parametrize("name", list(queue.RUNS))
def test_samples_of_unlike_cost(benchmark, name):
    """The same samples in a queue, and batch after batch."""
    benchmark.group = f"{queue.SAMPLES} samples that need unlike numbers of steps"
    net = queue.problem()[0]
    net.calls = net.rows = 0
    benchmark.pedantic(queue.RUNS[name], rounds=1)
    benchmark.extra_info.update(calls=net.calls, rows=net.rows)
