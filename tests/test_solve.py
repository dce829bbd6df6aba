"""The loop: faults seen in this field's libraries, each a clear error or the right answer; independence of rows."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from cases import crossed, mostly_slow
from problems import F64, mixture
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import sdegen as sd
from sdegen.errors import ScoreShapeError, ScoreTypeError

VP = sd.VP()
SOLVERS = {
    "euler_maruyama": sd.euler_maruyama(),
    "reverse_diffusion": sd.reverse_diffusion(),
    "ancestral": sd.ancestral(),
    "ddpm": sd.ddpm(),
    "ddim": sd.ddim(),
    "ddim(0.5)": sd.ddim(0.5),
    "pc": sd.pc(),
    "heun": sd.heun(),
    "dpmpp(3)": sd.dpmpp(3),
    "unipc(4)": sd.unipc(4),
    "sde, corrected": sd.Multistep(2, sd.DATA, 1.0, correct=True),
    "SIGMA in s^(1/7)": sd.Multistep(4, sd.SIGMA(variable=lambda lam: torch.exp(-lam / 7))),
    "FLOW": sd.Multistep(2, sd.FLOW, 0.5),
    "rk4 in TIME": sd.RungeKutta(sd.tableaus.RK4, sd.TIME),
    "default": sd.default(),
}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())


def start(n=5, dtype=F64):
    return VP.prior(sd.noise.seeds(0, n), (2,), dtype)


def white(n=5):
    return sd.White(sd.noise.seeds(9, n))


def run(solver, model=None, x=None, steps=6, **options):
    x = start() if x is None else x
    options.setdefault("noise", white(len(x)) if solver.stochastic else None)
    return sd.solve(model or mixture(VP), x, sd.grids.by_snr(VP, steps), solver, **options)


class Faulty:
    """The exact score, which does `fault` to sample `row` from call `call` on."""

    def __init__(self, fault, row=2, call=3):
        self.model, self.fault, self.row, self.call, self.calls = mixture(VP), fault, row, call, 0

    def __call__(self, x, t):
        self.calls += 1
        out = self.model(x, VP.level(t))
        if self.calls == self.call:
            out = out.clone()
            out[self.row] = self.fault
        return out


@solvers
@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_one_bad_sample_ends_alone(solver, fault):
    good = run(solver, sd.ScoreModel(VP, Faulty(0.0, call=-1)))
    model = sd.ScoreModel(VP, Faulty(fault))
    with pytest.raises(sd.SolveError, match=r"1 of 5 samples became NaN or Inf \(rows 2\).*at t=") as info:
        run(solver, model)
    model.net.calls = 0
    returned = run(solver, model, on_failure="return")
    others = [0, 1, 3, 4]
    for solution in (info.value.partial, returned):
        assert torch.equal(solution.x[others], good.x[others])
        assert solution.x.isfinite().all()
        assert solution.status.tolist() == [0, 0, sd.Status.NONFINITE, 0, 0]
        assert solution.ok.tolist() == [True, True, False, True, True]
        step = (3 - 1) // solver.evals  # the step that holds the third call
        assert solution.accepted.tolist() == [6, 6, step, 6, 6]
        assert solution.nfe.tolist() == [6 * solver.evals] * 2 + [(step + 1) * solver.evals] + [6 * solver.evals] * 2
        assert solution.level.t[2] == sd.grids.by_snr(VP, 6)[step]
        assert (solution.level.t[others] == VP.t_min).all()
        assert solution.rejected.tolist() == [0] * 5


def test_bad_start_is_an_error_before_the_first_call():
    x = start()
    x[1, 0], x[3, 1] = float("nan"), float("inf")
    net = Faulty(0.0)
    with pytest.raises(sd.InvalidArgumentError, match=r"rows \[1, 3\] of 5"):
        run(sd.ddim(), sd.ScoreModel(VP, net), x)
    assert net.calls == 0


@pytest.mark.parametrize("name", mostly_slow(SOLVERS, ["pc", "heun", "unipc(4)", "FLOW", "default"]))
def test_exactly_n_steps_and_never_outside_the_span(name):
    solver = SOLVERS[name]
    seen = []
    exact = mixture(VP)

    def net(x, t):
        seen.append(t)
        return exact(x, VP.level(t))

    solution = run(solver, sd.ScoreModel(VP, net), steps=7)
    assert len(seen) == 7 * solver.evals
    assert solution.nfe.tolist() == [7 * solver.evals] * 5
    assert solution.accepted.tolist() == [7] * 5
    assert (solution.level.t == VP.t_min).all()
    times = torch.stack(seen)
    assert (times >= VP.t_min).all()
    assert (times <= VP.t_max).all()
    long = sd.solve(sd.ScoreModel(VP, net), start(dtype=torch.float32), sd.grids.by_time(VP, 1000), sd.ddim())
    assert long.accepted.tolist() == [1000] * 5


@solvers
def test_solvers_are_immutable_repeatable_and_thread_safe(solver):
    first = run(solver).x
    assert torch.equal(run(solver).x, first)
    with pytest.raises(AttributeError):
        solver.order = 7
    assert torch.equal(run(copy.deepcopy(solver)).x, first)
    results = [None] * 4

    def work(i):
        results[i] = run(solver).x

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert all(torch.equal(r, first) for r in results)


@pytest.mark.slow
@solvers
def test_inductor_gives_the_same_numbers(solver):
    torch._dynamo.reset()
    model, solver = sd.ScoreModel(VP, lambda x, t: torch.tanh(x) + t[:, None], "noise"), solver.for_steps(3)
    level = VP.level(sd.grids.by_snr(VP, 3))
    now, next = (sd.Level(*(part[i] for part in level)) for i in (0, 1))
    noise, x = white(), start()
    carry = solver.init(model, x, now)
    step = torch.compile(lambda x, carry: solver.step(model, x, now, next, carry, noise).x, fullgraph=True)
    torch.testing.assert_close(step(x, carry), solver.step(model, x, now, next, carry, noise).x, rtol=1e-12, atol=1e-12)


def test_float32_weights_keep_float64_levels():
    """10,000 float32 steps: errors are those of storing x in float32, not of levels (k-diffusion's lms: 0.57)."""
    point = sd.GaussianMixture(torch.tensor([[0.7, -2.0]]), stds=0.0).score(sd.EDM())
    x = sd.EDM().prior(sd.noise.seeds(0, 3), (2,))
    out = sd.solve(point, x, sd.grids.karras(sd.EDM(), 10_000), sd.Multistep(3, sd.SIGMA)).x
    assert float((out - torch.tensor([0.7, -2.0])).abs().max()) < 0.02


def test_gradients_flow_through_solve():
    weight = torch.tensor([[0.3, -0.2], [0.1, 0.5]], dtype=F64, requires_grad=True)

    def final(weight, x):
        model = sd.ScoreModel(VP, lambda x, t: torch.tanh(x @ weight), "noise")
        return sd.solve(model, x, sd.grids.by_snr(VP, 5), sd.dpmpp(2)).x

    x = start(2).requires_grad_()
    assert torch.autograd.gradcheck(final, (weight, x))


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_an_exception_passes_unchanged_with_a_note(error):
    calls = []

    def net(x, t):
        calls.append(t)
        if len(calls) == 4:
            raise error
        return -x

    with pytest.raises(type(error)) as info:
        run(sd.ddim(), sd.ScoreModel(VP, net))
    assert info.value is error
    time = float(sd.grids.by_snr(VP, 6)[3])
    assert info.value.__notes__ == [f"sdegen: in step 4, at t={time:.6g}, after 3 evaluations"]
    assert info.value.partial.accepted.tolist() == [3] * 5
    assert torch.equal(
        info.value.partial.x,
        run(sd.ddim(), sd.ScoreModel(VP, lambda x, t: -x), observe=lambda p: sd.STOP if p.step == 3 else None).x,
    )
    calls.clear()
    calls.extend([None] * 10)
    run(sd.ddim(), sd.ScoreModel(VP, net))  # the same objects again


def test_wrong_first_output_is_an_error_with_both_shapes():
    with pytest.raises(ScoreShapeError, match=r"\[5, 1\].*\[5, 2\]"):
        run(sd.ddim(), sd.ScoreModel(VP, lambda x, t: x[:, :1]))
    x = start()
    with pytest.raises(sd.ScoreError, match="modified its input"):
        run(sd.ddim(), sd.ScoreModel(VP, lambda x, t: x.zero_()), x)
    assert torch.equal(x, start())


@solvers
def test_empty_batches_and_single_elements(solver):
    net = Faulty(0.0)
    empty = run(solver, sd.ScoreModel(VP, net), torch.zeros(0, 2, dtype=F64))
    assert empty.x.shape == (0, 2)
    assert net.calls == 0
    assert empty.level.t.shape == empty.status.shape == (0,)
    one = run(solver, sd.ScoreModel(VP, lambda x, t: -x), torch.ones(1, 1, dtype=F64))
    assert one.x.shape == (1, 1)
    none = run(solver, sd.ScoreModel(VP, lambda x, t: -x), torch.ones(3, 0, dtype=F64))
    assert none.x.shape == (3, 0)
    image = run(solver, sd.ScoreModel(VP, lambda x, t: -x), torch.ones(2, 3, 4, 5, dtype=F64))
    assert image.x.shape == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": lambda x, t: -x}, sd.InvalidTypeError, "wrap a callable as ScoreModel"),
        ({"x": [1.0]}, sd.InvalidTypeError, "must be a torch.Tensor"),
        ({"x": torch.ones(3, 2, dtype=torch.int64)}, sd.InvalidTypeError, r"x\.float\(\)"),
        ({"x": torch.tensor(1.0)}, sd.InvalidArgumentError, r"x\[None\]"),
        ({"x": torch.ones(3)}, sd.InvalidArgumentError, r"x\[:, None\]"),
        ({"solver": sd.Multistep}, sd.InvalidTypeError, r"sd\.ddim\(\)"),
        ({"solver": "ddim"}, sd.InvalidTypeError, "solver must be"),
        ({"solver": sd.ddpm()}, sd.InvalidArgumentError, "draws noise"),
        ({"control": 20}, sd.InvalidTypeError, "control must be"),
        ({"control": torch.tensor([0.5, 0.5])}, sd.InvalidArgumentError, "strictly monotone"),
        ({"control": torch.tensor([1.0, 0.0])}, sd.InvalidArgumentError, "span"),
        ({"on_failure": "ignore"}, sd.InvalidArgumentError, "'raise' or 'return'"),
        ({"nosie": None}, sd.InvalidTypeError, "did you mean 'noise'"),
        ({"wibble": None}, sd.InvalidTypeError, "it takes"),
        ({"noise": sd.White(sd.noise.seeds(0, 2)), "solver": sd.ddpm()}, sd.InvalidArgumentError, "2 seeds"),
        ({"noise": sd.White, "solver": sd.ddpm()}, sd.InvalidArgumentError, "one seed per row"),
        ({"control": sd.grids.karras}, sd.InvalidTypeError, r"karras\(process, n\)"),
        ({"control": torch.tensor([1.0, 0.5], requires_grad=True)}, sd.InvalidArgumentError, "detach"),
        ({"observe": 3}, sd.InvalidTypeError, "observe must be"),
        ({"solver": object()}, sd.InvalidTypeError, "OneStep|methods are functions"),
    ],
)
def test_mistakes_are_errors_before_the_first_call(options, error, message):
    net = Faulty(0.0)
    arguments = {"model": sd.ScoreModel(VP, net), "x": start(), "control": [1.0, 0.5], "solver": sd.ddim(), **options}
    with pytest.raises(error, match=message):
        sd.solve(**arguments)
    assert net.calls == 0


def test_time_may_run_up_for_deterministic_solvers_only():
    up = sd.grids.by_snr(VP, 40).flip(0)
    x = sd.GaussianMixture(torch.zeros(1, 2), stds=0.5).sample(4).double()
    there = sd.solve(mixture(VP), x, up, sd.dpmpp(2)).x
    back = sd.solve(mixture(VP), there, up.flip(0), sd.dpmpp(2)).x
    assert float((back - x).abs().max()) < 0.05
    with pytest.raises(sd.InvalidArgumentError, match="only towards data"):
        sd.solve(mixture(VP), x, up, sd.ddpm(), noise=white(4))


def test_a_network_in_training_mode_warns_once():
    net = torch.nn.Linear(2, 2).double()

    def wrapped(net):
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, x, t):
                return self.net(x)

        return Net()

    model = sd.ScoreModel(VP, wrapped(net), "noise")
    with pytest.warns(UserWarning, match="training mode") as caught:
        run(sd.ddim(), model)
    assert len(caught) == 1
    model.net.eval()
    run(sd.ddim(), model)


def test_observer_keeps_a_path_and_stops_early():
    seen = run(sd.ddim(), observe=lambda p: (p.step, p.steps, p.nfe, p.x, p.level))
    assert [v[:3] for v in seen.path] == [(k, 6, k) for k in range(1, 7)]
    assert torch.equal(seen.path[-1][3], seen.x)
    times = sd.grids.by_snr(VP, 6)
    assert [float(v[4].t) for v in seen.path] == times[1:].tolist()
    stopped = run(sd.ddim(), observe=lambda p: sd.STOP if p.step == 2 else None)
    assert stopped.path == []
    assert stopped.status.tolist() == [sd.Status.STOPPED] * 5
    assert stopped.ok.all()
    assert torch.equal(stopped.x, seen.path[1][3])
    assert (stopped.level.t == times[2]).all()


def test_progress_bar_counts_steps_and_evaluations(capsys):
    run(sd.heun(), progress=True)
    err = capsys.readouterr().err
    assert "12/12" in err
    assert "evaluation" in err
    run(sd.heun())
    assert capsys.readouterr().err == ""


def test_a_solver_of_one_s_own():
    """Heun in SIGMA written by hand in a dozen lines is the library's."""
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Heun(sd.OneStep):
        evals = 2

        def step(self, model, x, now, next, carry, noise):
            s, s_next = now.sigma / now.alpha, next.sigma / next.alpha
            first = model(x, now, "noise")
            guess = next.alpha * (x / now.alpha + (s_next - s) * first)
            second = model(guess, next, "noise")
            return sd.Step(next.alpha * (x / now.alpha + (s_next - s) * (first + second) / 2), carry)

    torch.testing.assert_close(run(Heun()).x, run(sd.heun()).x, rtol=1e-12, atol=1e-12)


@solvers
@pytest.mark.parametrize("kind", ["network", "mixture"])
def test_the_state_may_live_on_another_device_than_the_levels(solver, kind, monkeypatch):
    """Levels stay on the host; meta stands in for an accelerator, with float64 or without; it takes CPU scalars."""
    net = sd.ScoreModel(VP, lambda x, t: x * t[:, None], "noise")
    x, seeds = torch.empty(5, 2, device="meta"), torch.zeros(5, dtype=torch.int64, device="meta")
    model = net if kind == "network" else mixture(VP)
    with Float64Seen() as seen:
        solution = run(solver, model, x, noise=sd.White(seeds))
    assert {part.device.type for part in (solution.x, solution.nfe, solution.status)} == {"meta"}
    assert solution.level.t.device.type == "cpu"  # where float64 numbers of such a device lie
    assert not seen.where or kind == "mixture"  # an exact score is float64 inside
    monkeypatch.setattr("sdegen.tensors.WITHOUT_FLOAT64", [])
    solution = run(solver, model, x, noise=sd.White(seeds))
    assert {part.device.type for part in (solution.x, solution.level.t, solution.nfe, solution.status)} == {"meta"}


class Float64Seen(TorchDispatchMode):
    """Counts the float64 tensors that are made on the meta device."""

    def __init__(self):
        super().__init__()
        self.where = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_meta and out.dtype == torch.float64:
            self.where.append(str(function))
        return out


def test_noise_sources_and_steps_are_checked():
    """A source that would broadcast, a solver that forgot `stochastic`, a step that is none: named, not guessed."""
    x = start(4)
    for noise in (
        lambda x, a, b, tag=0: torch.zeros(1, dtype=F64),
        lambda x, a, b, tag=0: torch.zeros(3, 2, dtype=F64),
    ):
        with pytest.raises(sd.InvalidArgumentError, match=r"normals like x, \[4, 2\]"):
            run(sd.ddpm(), x=x, noise=noise)

    class Own(sd.OneStep):
        def __init__(self, out):
            self.out = out

        def step(self, model, x, now, next, carry, noise):
            return self.out(x, now, next, carry, noise)

    wrong = {
        "must return sd.Step": lambda x, now, next, carry, noise: x,
        "must keep": lambda x, now, next, carry, noise: sd.Step(x[:1], carry),
        "and torch.float32": lambda x, now, next, carry, noise: sd.Step(x.float(), carry),
        "make it True": lambda x, now, next, carry, noise: sd.Step(noise(x, now, next), carry),
    }
    for message, out in wrong.items():
        with pytest.raises(sd.SdegenError, match=message):
            run(Own(out), x=x)


def test_rejects_a_history_of_another_batch():
    """RELIABILITY's broadcasting histories: B=1 in, B=4 out."""
    solver, model = sd.dpmpp(2), mixture(VP)
    now, next = VP.level(0.8), VP.level(0.6)
    carry = solver.step(model, start(4), now, next, solver.init(model, start(4), now), None).carry
    with pytest.raises(sd.InvalidArgumentError, match=r"shape \[4, 2\] and x has \[1, 2\]"):
        solver.step(model, start(1), next, VP.level(0.4), carry, None)


def test_an_observer_may_not_edit_the_state():
    with pytest.raises(sd.InvalidArgumentError, match="edit a copy"):
        run(sd.ddim(), observe=lambda p: p.x.zero_())


def test_inference_mode_and_autocast():
    """The same bits in inference mode, energies too; a half-precision answer under autocast is refused, or cast."""
    expected = run(sd.unipc(2)).x

    def energy(x, t):
        return (x * x).sum(1) / 2

    force = run(sd.ddim(), sd.ScoreModel(VP, energy, "energy")).x
    sde = sd.SDE.from_functions(lambda x, t: -x, lambda x, t: 1 + x * x)
    drift = sde.reverse(lambda x, t: -x).drift(start(), 0.5)
    with torch.inference_mode():
        assert torch.equal(run(sd.unipc(2)).x, expected)
        assert torch.equal(run(sd.ddim(), sd.ScoreModel(VP, energy, "energy")).x, force)
        assert torch.equal(sde.reverse(lambda x, t: -x).drift(start(), 0.5), drift)
    layer = torch.nn.Linear(2, 2).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        with pytest.raises(ScoreTypeError, match=r"bfloat16.*cast=True"):
            run(sd.ddim(), sd.ScoreModel(VP, lambda x, t: layer(x)), start(dtype=torch.float32))
        out = run(sd.ddim(), sd.ScoreModel(VP, lambda x, t: layer(x), cast=True), start(dtype=torch.float32))
    assert out.x.dtype == torch.float32


@pytest.mark.parametrize("kind", ["mixture", "energy", "network"])
@pytest.mark.parametrize(
    "solver", [sd.dpmpp(2), sd.unipc(2), sd.heun(), sd.ddpm()], ids=["2m", "unipc", "heun", "ddpm"]
)
def test_gradients_by_finite_differences(kind, solver):
    scale = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def final(scale, x):
        model = {
            "mixture": mixture(VP),
            "energy": sd.ScoreModel(VP, lambda x, t: scale * (x**2).sum(1) + x[:, 0].sin(), "energy"),
            "network": sd.ScoreModel(VP, lambda x, t: torch.tanh(scale * x) + t[:, None], "v"),
        }[kind]
        out = sd.solve(model, x, sd.grids.by_snr(VP, 3), solver, noise=white(2)).x
        return out + 0 * scale

    assert torch.autograd.gradcheck(final, (scale, start(2).requires_grad_()))


COMPILED = [sd.dpmpp(2), sd.euler_maruyama(), sd.heun(), sd.RungeKutta(sd.tableaus.RK4, sd.TIME)]
ON = [sd.DiscreteVP(), sd.Cosine(), sd.Flow(), sd.EDM()]


@pytest.mark.parametrize(("solver", "process"), mostly_slow(crossed(COMPILED, ON), list(zip(COMPILED, ON))[:1]))
def test_every_process_is_free_of_host_reads_and_compiles(solver, process):
    control, seeds = sd.Fixed(sd.grids.by_snr(process, 3)), sd.noise.seeds(0, 5)
    exact = mixture(process)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        noise = sd.White(mode.from_tensor(seeds))
        assert sd.solve(exact, mode.from_tensor(start()), control, solver, noise=noise).x.shape == (5, 2)
    torch._dynamo.reset()
    model = sd.ScoreModel(process, lambda x, t: torch.tanh(x), "noise")
    level = process.level(control.times)
    now, next = (sd.Level(*(part[i] for part in level)) for i in (1, 2))
    noise, x = sd.White(seeds), start()
    step = torch.compile(
        lambda x: solver.step(model, x, now, next, solver.init(model, x, now), noise).x, fullgraph=True, backend="eager"
    )
    own = solver.step(model, x, now, next, solver.init(model, x, now), noise).x
    torch.testing.assert_close(step(x), own, rtol=1e-12, atol=1e-12)


def test_solve_errors_survive_a_process_boundary():
    with pytest.raises(sd.SolveError) as info:
        run(sd.ddim(), sd.ScoreModel(VP, Faulty(float("nan"))))
    again = pickle.loads(pickle.dumps(info.value))
    assert str(again) == str(info.value)
    assert torch.equal(again.partial.x, info.value.partial.x)


def test_no_graph_is_kept_without_gradients():
    """Row 48: under no_grad memory does not grow with the steps, nor does anything hang on a graph."""
    weight = torch.ones(2, dtype=F64, requires_grad=True)
    model = sd.ScoreModel(VP, lambda x, t: x * weight, "noise")
    with torch.no_grad():
        assert not run(sd.unipc(3), model).x.requires_grad
    assert run(sd.unipc(3), model).x.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_solve_can_be_captured_as_a_cuda_graph():
    """One capture, replayed with another start, gives what the eager solve gives."""
    process = sd.VP()
    model = sd.ScoreModel(process, lambda x, t: 0.3 * x + t[:, None], "noise")
    times = sd.grids.by_snr(process, 6)
    x = process.prior(sd.noise.seeds(0, 4), (3,)).cuda()
    other = process.prior(sd.noise.seeds(1, 4), (3,)).cuda()
    with torch.no_grad():
        expected = sd.solve(model, other, times, sd.unipc(3)).x
        sd.solve(model, x, times, sd.unipc(3))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = sd.solve(model, x, times, sd.unipc(3)).x
        x.copy_(other)
        graph.replay()
    torch.testing.assert_close(out, expected)
