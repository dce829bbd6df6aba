"""Training: a step is a function of (seed, step) and its batch; averages; checkpoints; what is told of bad input."""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import sdegen as sd
from sdegen.scores import weights

torch_seed = 0
DATA = torch.randn(96, 3, generator=torch.Generator().manual_seed(1))


class Net(torch.nn.Module):
    """Small, with all that is hard on a trainer: dropout, batch norm, a buffer, a condition."""

    def __init__(self, dropout=0.3):
        super().__init__()
        self.first = torch.nn.Linear(4, 16)
        self.norm = torch.nn.BatchNorm1d(16)
        self.drop = torch.nn.Dropout(dropout)
        self.last = torch.nn.Linear(16, 3)
        self.label = torch.nn.Embedding(4, 16)

    def forward(self, x, t, label=None):
        h = self.first(torch.cat([x, t[:, None].to(x.dtype)], 1))
        h = h if label is None else h + self.label(label)
        return self.last(self.drop(torch.nn.functional.silu(self.norm(h))))


def model(net=None, **options):
    torch.manual_seed(torch_seed)
    return sd.ScoreModel(sd.VP(), Net() if net is None else net, "v", time=sd.model.log_sigma_time, **options)


def adam(params):
    return torch.optim.AdamW(params, 1e-2)


def train(made, steps=6, batches=None, **options):
    options = {"loss": sd.losses.simple, "optimizer": adam, "progress": False, **options}
    return sd.train(made, sd.Batches(DATA, 16) if batches is None else batches, steps=steps, **options)


def last(states):
    *_, state = states
    return state


def bits(made):
    return torch.cat([value.double().flatten() for value in weights.found(made).state_dict().values()])


def same(a, b):
    return torch.equal(bits(a.model), bits(b.model)) and torch.equal(bits(a.ema), bits(b.ema))


def test_it_learns_a_gaussian():
    """The velocity of N(m, 0.5^2) by a network of ten lines: nearer than the best that ignores the mean."""
    data = 2.0 + 0.5 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2))
    made = sd.ScoreModel(sd.VP(), lambda x, t: net(torch.cat([x, t[:, None]], 1)), "v", time=sd.model.log_sigma_time)
    states = list(train(made, 400, sd.Batches(data, 128), optimizer=torch.optim.Adam(made.parameters(), 1e-2)))
    assert [state.step for state in states] == list(range(1, 401))
    law = sd.Gaussian(torch.full((2,), 2.0), std=0.5)
    level = sd.VP().level(0.4)
    x = law.sample(2000, seed=1, level=level, dtype=torch.float32)
    with torch.no_grad():
        far = sd.losses.fisher(states[-1].ema, law, x, level).mean()
        scale = law.score(sd.VP())(x, level).square().mean()
    assert float(far) < 0.02 * float(scale)
    means = states[-1].by_level
    assert means.lam.shape == (11,)
    assert means.loss.shape == (10,)
    exact = 1 / (1 + 4 * torch.exp(-2 * (means.lam[1:] + means.lam[:-1]) / 2))  # alpha^2 v / (alpha^2 v + sigma^2)
    assert ((means.loss[4:] / exact[4:]).log().abs() < 0.4).all()
    y = sd.sample(states[-1].ema, (1000, 2), nfe=12, seed=0)
    assert (y.mean(0) - 2).abs().max() < 0.15


def test_a_step_is_a_function_of_seed_and_step_dropout_included():
    torch.manual_seed(77)
    state = torch.get_rng_state()
    runs = []
    for outside in (1, 2):
        made = model()
        torch.manual_seed(outside)
        before = torch.get_rng_state()
        runs.append(last(train(made)))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*runs)
    assert not same(runs[0], last(train(model(), seed=1)))
    torch.set_rng_state(state)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, accumulate):
    path = tmp_path / "run.safetensors"
    options = {"accumulate": accumulate, "schedule": lambda k: 0.9**k, "clip": 1.0}
    whole = last(train(model(), 9, **options))
    kept = sd.Checkpoint(path, every=4)
    for state in train(model(), 9, checkpoint=kept, **options):
        if state.step == 6:
            break  # what is kept is step 4
    torch.manual_seed(5)  # weights that the file replaces
    again = sd.ScoreModel(sd.VP(), Net(), "v", time=sd.model.log_sigma_time)
    states = list(train(again, 9, checkpoint=kept, **options))
    assert [state.step for state in states] == [5, 6, 7, 8, 9]
    assert same(whole, states[-1])
    assert states[-1].lr == whole.lr == pytest.approx(1e-2 * 0.9**8)
    assert torch.equal(whole.by_level.loss.nan_to_num(), states[-1].by_level.loss.nan_to_num())
    done = list(train(model(), 9, checkpoint=kept, **options))
    assert [state.step for state in done] == [9]
    assert same(whole, done[0])
    longer = last(train(model(), 11, checkpoint=path, **options))
    assert same(longer, last(train(model(), 11, **options)))


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
    script = textwrap.dedent(
        """
        import sys, os, signal, torch, sdegen as sd
        torch.manual_seed(0)
        net = sd.nets.MLP(3, width=16, depth=1)
        model = sd.ScoreModel(sd.VP(), net, "noise", time=sd.model.log_sigma_time)
        data = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
        kept = sd.Checkpoint(sys.argv[1], every=5)
        for state in sd.train(model, sd.Batches(data, 16), loss=sd.losses.simple, steps=20,
                              optimizer=torch.optim.Adam, checkpoint=kept):
            if state.step == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
        state.ema.save(sys.argv[1] + ".model")
        """
    )
    paths = [str(tmp_path / name) for name in ("whole.safetensors", "killed.safetensors")]
    for path, at in ((paths[0], 0), (paths[1], 13), (paths[1], 0)):
        done = subprocess.run([sys.executable, "-c", script, path, str(at)], capture_output=True, text=True)
        assert done.returncode == (-9 if at else 0), done.stderr
    whole, killed = (Path(path).read_bytes() for path in paths)
    assert whole == killed
    models = [Path(path + ".model").read_bytes() for path in paths]
    assert models[0] == models[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        os.path.basename(p) + e for p in paths for e in ("", ".model")
    )


def test_a_loader_resumes_where_it_was(tmp_path):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(DATA), batch_size=32)  # 3 batches an epoch
    path = tmp_path / "run.safetensors"
    whole = last(train(model(), 8, loader))
    for state in train(model(), 8, loader, checkpoint=sd.Checkpoint(path, every=4)):
        if state.step == 5:
            break
    assert same(whole, last(train(model(), 8, loader, checkpoint=path)))


def test_batches_accumulate_to_the_gradient_of_their_mean():
    net = torch.nn.Linear(3, 3)
    start = copy.deepcopy(net.state_dict())

    def loss(made, data, *, seed):
        return (made.net.inner(data) - 1).square().mean(1)

    class Wrap(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x, t):
            return self.inner(x)

    parts = [DATA[:16], DATA[16:32]]
    found = []
    for batches, accumulate in ((parts, 2), ([DATA[:32]], 1)):
        net.load_state_dict(start)
        made = sd.ScoreModel(sd.VP(), Wrap(), "noise")
        state = last(
            train(made, 1, batches, loss=loss, accumulate=accumulate, optimizer=lambda p: torch.optim.SGD(p, 0.1))
        )
        found.append((bits(made), state.loss))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-7)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)


def test_no_two_batches_have_the_same_noise():
    seen = []

    def loss(made, data, *, seed):
        seen.append(seed)
        return sd.losses.simple(made, data, seed=seed)

    last(train(model(), 6, accumulate=3, loss=loss))
    assert len(set(seen)) == len(seen) == 18


def test_the_norm_of_the_gradient_is_bounded():
    moved = []
    for clip in (None, 1e-3):
        made = model()
        before = bits(made)
        last(train(made, 1, clip=clip, ema=None, optimizer=lambda p: torch.optim.SGD(p, 1.0)))
        names = [name for name, _ in made.net.named_parameters()]
        moved.append(
            sum(
                float((made.net.get_parameter(n) - model().net.get_parameter(n)).square().sum().detach()) for n in names
            )
        )
        assert not torch.equal(bits(made), before)
    assert moved[1] ** 0.5 == pytest.approx(1e-3, rel=1e-3)
    assert moved[0] > moved[1]


def test_a_file_is_replaced_and_never_edited(tmp_path):
    path = kept(tmp_path)
    before = path.read_bytes()
    os.link(path, tmp_path / "old")  # another name of the same file
    last(train(model(), 6, checkpoint=path))
    assert path.read_bytes() != before == (tmp_path / "old").read_bytes()


def averaged(ema, steps):
    """The weight of each step's value in an average."""
    share = np.zeros(steps + 1)
    share[0] = 1.0
    for n in range(1, steps + 1):
        share *= ema.rate(n)
        share[n] += 1 - ema.rate(n)
    return share


@pytest.mark.parametrize("length", [0.05, 0.1, 0.2])
def test_the_length_of_an_average_is_the_spread_of_its_weights(length):
    share, n = averaged(sd.EMA(length), 4000), np.arange(4001)
    assert share.sum() == pytest.approx(1)
    assert share[0] == 0  # the start is forgotten at once
    mean = (share * n).sum()
    assert np.sqrt((share * (n - mean) ** 2).sum()) / 4000 == pytest.approx(length, rel=0.02)


def test_a_decay_warms_up():
    share = averaged(sd.EMA(decay=0.9999), 300)
    assert share[0] < 1e-6  # without warm-up it were 0.97
    assert sd.EMA(decay=0.9999).rate(10**6) == 0.9999
    for options, message in (
        ({"length": 0.9999}, r"a decay is EMA\(decay=0.999\)"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\)"),
        ({"length": 0.1, "decay": 0.9}, "give a length or a decay"),
    ):
        with pytest.raises(sd.InvalidArgumentError, match=message):
            sd.EMA(**options)


def test_parameters_are_averaged_and_buffers_copied():
    made, ema = model(), sd.EMA(0.2)
    states = [(copy.deepcopy(dict(made.net.state_dict())), state) for state in train(made, 12, ema=ema)]
    seen, state = [weights for weights, _ in states], states[-1][1]
    share = averaged(ema, 12)[1:]
    for name, value in state.ema.net.state_dict().items():
        if name in dict(made.net.named_parameters()):
            want = sum(float(s) * step[name].double() for s, step in zip(share, seen))
            assert torch.allclose(value.double(), want, atol=1e-6), name
        else:
            assert torch.equal(value, seen[-1][name]), name
    assert not state.ema.net.training
    assert not any(p.requires_grad for p in state.ema.parameters())
    assert state.ema.process is made.process
    assert state.ema.time is made.time
    assert last(train(model(), 2, ema=None)).ema.net is not None


def test_an_average_of_half_precision_weights_is_float32():
    made = model(torch.nn.Linear(3, 3).bfloat16())
    average = sd.EMA(0.1).of(made)
    assert all(p.dtype == torch.float32 for p in average.model.parameters())


def test_the_mode_of_the_network_comes_back():
    made = model().eval()
    states = train(made, 3)
    next(states)
    assert made.net.training
    made.eval()
    next(states)
    assert made.net.training
    states.close()
    assert not made.net.training


GLOBAL = torch.nn.Linear(3, 3)


def by_name(x, t):
    """What is imported again by its name, and so has one network for all copies."""
    return GLOBAL(x)


@pytest.mark.parametrize("given", [True, False])
def test_the_average_is_what_a_lambda_is_evaluated_by(given):
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 3)
    made = sd.ScoreModel(sd.VP(), lambda x, t: net(x), "noise", module=net if given else None)
    state = last(train(made, 20))
    level = sd.VP().level(0.3)
    with torch.no_grad():
        want = torch.nn.functional.linear(DATA, state.ema.module.weight, state.ema.module.bias)
        assert torch.equal(state.ema(DATA, level, "noise"), want)
        assert not torch.equal(state.ema.module.weight, net.weight)
        twin = copy.deepcopy(made)
        twin.module.weight.zero_()
        assert torch.equal(twin(DATA, level, "noise"), twin.module.bias.expand(96, 3))


@pytest.mark.parametrize("given", [True, False])
def test_a_network_that_no_copy_can_have_is_told_and_left_as_it_is(given):
    made = sd.ScoreModel(sd.VP(), by_name, "noise", module=GLOBAL if given else None)
    with pytest.raises(sd.InvalidArgumentError, match="by_name reaches its network by a global name"):
        train(made)
    assert all(p.requires_grad for p in GLOBAL.parameters())
    assert GLOBAL.training
    assert last(train(made, 2, ema=None)).step == 2


def with_weight(extra):
    """A loss with a parameter of its own, or without."""

    def loss(m, data, *, seed):
        found = sd.losses.simple(m, data, seed=seed)
        return found if extra is None else found * torch.exp(-extra) + extra

    return loss


def test_parameters_beside_the_network_are_kept(tmp_path):
    path = tmp_path / "run.safetensors"

    def run(steps, checkpoint):
        made, extra = model(), torch.nn.Parameter(torch.zeros(()))
        optimizer = torch.optim.Adam([*made.parameters(), extra], 0.1)
        states = train(made, steps, loss=with_weight(extra), optimizer=optimizer, checkpoint=checkpoint)
        return last(states), float(extra.detach())

    whole = run(8, None)
    run(4, path)
    again = run(8, path)
    assert again[1] == whole[1] != 0
    assert same(again[0], whole[0])
    with pytest.raises(sd.InvalidArgumentError, match="of another optimizer"):
        train(model(), 9, loss=with_weight(None), optimizer=lambda p: torch.optim.Adam(p, 0.1), checkpoint=path)


def test_the_optimizers_numbers_are_those_of_the_call(tmp_path):
    path = tmp_path / "run.safetensors"
    last(train(model(), 4, checkpoint=path))
    state = last(train(model(), 6, checkpoint=path, optimizer=lambda p: torch.optim.AdamW(p, 1e-5, weight_decay=0.3)))
    assert state.lr == 1e-5
    path.unlink()

    def outside(steps):  # a scheduler of torch in the caller's loop
        made = model()
        optimizer = adam(made.parameters())
        rates = []
        for state in train(made, steps, optimizer=optimizer, checkpoint=path):
            rates.append(state.lr)
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * 0.5
        return rates[-1]

    outside(4)
    assert outside(5) == 1e-2 * 0.5**3  # that of the file, and not the first


def test_weights_that_are_not_finite_replace_no_file(tmp_path):
    path = tmp_path / "run.safetensors"
    made = model()
    states = train(made, 9, checkpoint=sd.Checkpoint(path, every=1))
    next(states)
    before = path.read_bytes()
    with torch.no_grad():
        made.net.label.weight[0, 0] = torch.nan  # which no batch asks for: gradients stay finite
    with pytest.raises(sd.TrainingError, match="the weights are not finite after step 2"):
        next(states)
    assert path.read_bytes() == before


def test_what_a_killed_process_left_is_removed_and_the_place_stays(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    (tmp_path / ".run.safetensors.0a1b2c3d.part").write_bytes(b"half")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    states = train(model(), 4, checkpoint=sd.Checkpoint("run.safetensors", every=2))
    next(states)
    monkeypatch.chdir(tmp_path / "elsewhere")
    first = last(states)
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "run.safetensors"]
    assert os.listdir(tmp_path / "elsewhere") == []
    again = last(train(model(), 4, checkpoint=path))
    assert again.loss == first.loss


def test_half_networks_with_buffers_have_averages_that_run():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.eye(3))
            self.register_buffer("scale", torch.eye(3))

        def forward(self, x, t):
            return x @ self.scale @ self.weight

    state = last(train(model(Scaled().bfloat16()), 2, optimizer=lambda p: torch.optim.SGD(p, 1e-3)))
    assert sd.sample(state.ema, (4, 3), nfe=3, seed=0).dtype == torch.float32


def test_a_step_that_is_skipped_leaves_the_buffers():
    class Normed(Bad):
        def __init__(self, calls):
            super().__init__(calls)
            self.norm = torch.nn.BatchNorm1d(3)

        def forward(self, x, t):
            return self.norm(super().forward(x, t))

    state = last(train(model(Normed({3})), 6))
    assert state.skipped == 1
    assert torch.isfinite(bits(state.model)).all()
    assert torch.isfinite(bits(state.ema)).all()


def test_a_part_that_is_frozen_stays_so():
    made = model()
    made.net.norm.eval()
    states = train(made, 4)
    next(states)
    made.eval()  # to sample from it, say
    next(states)
    assert made.net.training
    assert made.net.drop.training
    assert not made.net.norm.training
    states.close()
    assert made.net.training
    assert not made.net.norm.training


def test_modes_of_torch_that_keep_no_gradients():
    with torch.no_grad():
        assert last(train(model(), 2)).step == 2
    with torch.inference_mode(), pytest.raises(sd.InvalidArgumentError, match=r"torch\.inference_mode"):
        next(train(model(), 2))


class Bad(torch.nn.Module):
    """Its gradient is not finite at the given calls."""

    def __init__(self, calls):
        super().__init__()
        self.weight, self.calls, self.count = torch.nn.Parameter(torch.ones(())), calls, 0

    def forward(self, x, t):
        self.count += 1
        return x * self.weight * (torch.inf if self.count in self.calls else 1.0)


def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_is_counted():
    made = model(Bad({2, 3, 5}))
    told = []
    for state in train(made, 7):
        told.append((state.skipped, made.net.weight.item()))
        assert torch.isfinite(made.net.weight)
    assert [skipped for skipped, _ in told] == [0, 1, 2, 2, 3, 3, 3]
    assert told[0][1] == told[1][1] == told[2][1] != told[3][1]
    assert torch.isfinite(state.by_level.loss[~state.by_level.loss.isnan()]).all()
    states = train(model(Bad({3, 4, 5})), 9)
    with pytest.raises(sd.TrainingError, match="not finite in 3 steps in a row, up to step 5"):
        list(states)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_loss_is_float32(dtype):
    seen = []

    def loss(made, data, *, seed):
        found = sd.losses.simple(made, data, seed=seed)
        seen.append(found.dtype)
        return found

    made = model()
    state = last(train(made, 30, amp=dtype, loss=loss))
    assert set(seen) == {torch.float32}
    assert torch.isfinite(bits(made)).all()
    assert state.skipped < 30
    assert all(p.dtype == torch.float32 for p in made.parameters())
    assert not made.cast


def test_a_scale_that_is_too_large_is_no_fault(monkeypatch):
    class Steep(torch.nn.Linear):
        def forward(self, x, t):
            return 300 * super().forward(x)

    state = last(train(model(Steep(3, 3)), 20, amp=torch.float16, optimizer=lambda p: torch.optim.SGD(p, 1e-9)))
    assert 3 < state.skipped < 20  # the scaler looks for its scale


def test_conditions_come_with_the_batch_and_some_are_dropped():
    labels = torch.arange(96) % 3
    batches = sd.Batches(DATA, 16, label=labels, null={"label": 3}, drop=0.25)
    seen = []

    class Labelled(Net):
        def forward(self, x, t, label=None):
            seen.append(label.clone())
            return super().forward(x, t, label)

    last(train(model(Labelled()), 6, batches))
    assert len(torch.cat(seen)) == 96
    data, conditions = zip(*(batches(k) for k in range(200)))
    drawn = torch.cat([c["label"] for c in conditions])
    assert abs(float((drawn == 3).double().mean()) - 0.25) < 6 * (0.25 * 0.75 / 3200) ** 0.5
    rows = {tuple(row.tolist()): int(label) for row, label in zip(DATA, labels)}
    for x, c in zip(data, conditions):
        assert all(int(label) in (3, rows[tuple(row.tolist())]) for row, label in zip(x, c["label"]))
    pairs = [(DATA[:16], {"label": labels[:16]})]
    assert torch.isfinite(bits(last(train(model(), 3, pairs)).model)).all()


def test_batches_are_a_function_of_seed_and_number_and_meet_everything_once_an_epoch():
    batches = sd.Batches(DATA, 20, seed=3)
    found = torch.cat([batches(k)[0] for k in range(24)])  # 480 samples, five epochs
    for epoch in range(5):
        part = found[96 * epoch : 96 * (epoch + 1)]
        assert {tuple(r.tolist()) for r in part} == {tuple(r.tolist()) for r in DATA}
    assert not torch.equal(found[:96], found[96:192])
    later = sd.Batches(DATA, 20, seed=3)
    assert torch.equal(later(17)[0], batches(17)[0])
    assert not torch.equal(sd.Batches(DATA, 20, seed=4)(0)[0], batches(0)[0])
    first = list(itertools.islice(batches, 3))
    assert torch.equal(torch.cat([x for x, _ in first]), found[:60])
    few = sd.Batches(DATA[:5], 16)
    assert few(0)[0].shape == (16, 3)
    assert sd.Batches(DATA.double().numpy(), 4)(0)[0].shape == (4, 3)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([DATA[:8], DATA[:8, :2]], sd.InvalidArgumentError, r"the batch of step 2 is \[8, 2\], and must be \[B, 3\]"),
        ([DATA[:8].long()], sd.InvalidTypeError, "the batch of step 1 must be of a floating dtype"),
        ([DATA[:0]], sd.InvalidArgumentError, r"the batch of step 1 is \[0, 3\]"),
        ([DATA[:8] / 0], sd.InvalidArgumentError, r"the batch of step 1 is NaN or Inf in rows \[0, 1"),
        ([], sd.InvalidArgumentError, "batches is empty: list has none to give"),
        (iter([DATA[:8]]), sd.InvalidArgumentError, "the batches ended after 1, and those of list_iterator"),
        (DATA, sd.InvalidTypeError, r"batches is one tensor \[96, 3\]: write sd.Batches"),
        (3, sd.InvalidTypeError, "batches must be sd.Batches"),
        ([(DATA[:8], torch.zeros(8))], sd.InvalidTypeError, r"\(data, \{'label': y\}\); got 2 of Tensor, Tensor"),
        ([{"image": DATA}], sd.InvalidTypeError, "a batch is a tensor"),
    ],
    ids=range(10),
)
def test_a_batch_that_cannot_be_trained_on_is_named(given, error, message):
    made = model()
    with pytest.raises(error, match=message):
        list(train(made, 3, given))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, sd.InvalidArgumentError, "steps must be a whole number"),
        ({"accumulate": 0}, sd.InvalidArgumentError, "accumulate must be a whole number"),
        ({"clip": -1.0}, sd.InvalidArgumentError, "clip must be positive"),
        ({"amp": torch.float32}, sd.InvalidArgumentError, "amp must be"),
        ({"loss": "simple"}, sd.InvalidTypeError, "loss must be sd.losses.simple"),
        ({"optimizer": 1e-3}, sd.InvalidTypeError, "optimizer must be a torch optimizer"),
        (
            {"optimizer": torch.optim.SGD([torch.zeros(2, requires_grad=True)], 0.1)},
            sd.InvalidArgumentError,
            "no param",
        ),
        ({"checkpoint": "/no/such/folder/run.safetensors"}, FileNotFoundError, "there is no folder"),
        ({"lr": 1e-3}, sd.InvalidTypeError, "unknown keyword 'lr'"),
        ({"ema": 0.999}, sd.InvalidTypeError, "ema must be sd.EMA"),
        ({"epochs": 3}, sd.InvalidTypeError, "unknown keyword 'epochs': did you mean 'steps'"),
        ({"loss": sd.losses.min_snr}, sd.InvalidTypeError, r"min_snr is not: .* write sd\.losses\.min_snr\(5\.0\)"),
        ({"loss": sd.losses.sliced}, sd.InvalidTypeError, "sliced is not: missing a required argument: 'level'"),
        ({"schedule": 1.0}, sd.InvalidTypeError, "schedule must be a function"),
        ({"checkpoint": 5}, sd.InvalidTypeError, "checkpoint must be a path"),
        ({"seed": -1}, sd.InvalidArgumentError, "seed must be in"),
        ({"optimizer": lambda p: torch.optim.LBFGS(p)}, sd.InvalidArgumentError, "LBFGS evaluates the loss by itself"),
    ],
    ids=range(17),
)
def test_an_argument_that_cannot_work_is_told_before_the_first_step(options, error, message):
    with pytest.raises(error, match=message):
        train(model(), **options)  # nothing was asked for yet


def test_data_of_another_scale_than_the_noise_are_warned_of():
    for scale in (300.0, 1e-3):
        with pytest.warns(UserWarning, match=r"root mean square of .*: bring data to a standard deviation of about 1"):
            last(train(model(), 1, sd.Batches(scale * DATA, 16)))
    for scale in (0.1, 10.0):
        last(train(model(), 1, sd.Batches(scale * DATA, 16)))


def test_a_schedule_leaves_no_trace():
    made = model()
    optimizer = adam(made.parameters())
    last(train(made, 4, optimizer=optimizer, schedule=lambda k: 1 - k / 3))
    assert optimizer.param_groups[0]["lr"] == 1e-2
    optimizer.param_groups[0]["lr"] = 1e-4
    assert last(train(made, 2, optimizer=optimizer, schedule=lambda k: 1.0)).lr == 1e-4


def test_a_run_with_a_schedule_goes_on_without(tmp_path):
    path = tmp_path / "run.safetensors"
    assert last(train(model(), 4, checkpoint=path, schedule=lambda k: 1 - k / 3)).lr == pytest.approx(0)
    assert last(train(model(), 6, checkpoint=path)).lr == 1e-2


def test_a_loss_of_ones_own_is_known_again_in_another_process(tmp_path):
    from sdegen.training.run import _record

    class Own:
        def __call__(self, model, data, *, seed):
            return data

    mine = sd.losses.Objective(sd.losses.Uniform(), lambda level: level.sigma)
    for loss in (Own(), mine, lambda model, data, *, seed: data):
        assert "0x" not in json.dumps(_record(loss))


def test_times_that_a_network_cannot_tell_apart_are_warned_of():
    made = sd.ScoreModel(sd.VP(), sd.nets.MLP(3, width=8, depth=1), "v", time=sd.model.index_time(1000))
    with pytest.warns(UserWarning, match=r"MLP tells times apart in an interval of 6, and gets .* to 999"):
        train(made)
    raw = sd.ScoreModel(sd.VP(), sd.nets.MLP(3, width=8, depth=1), "edm", sigma_data=0.2)
    with pytest.warns(UserWarning, match=r"sigma_data=0\.2: give"):
        last(train(raw, 1))


def test_words_of_loaders_are_no_conditions():
    for word, advice in (("batch_size", "did you mean 'size'"), ("shuffle", "it takes")):
        with pytest.raises(sd.InvalidTypeError, match=f"unknown keyword '{word}': {advice}"):
            sd.Batches(DATA, 16, **{word: 3})
    with pytest.raises(sd.InvalidArgumentError, match="needs null="):
        sd.Batches(DATA, 16, drop=0.1)
    labels = torch.arange(96) % 3
    for value in (0.5, None, [3, 4]):
        with pytest.raises(sd.InvalidArgumentError, match=r"must be a value of torch\.int64 like one of"):
            sd.Batches(DATA, 16, label=labels, null={"label": value})
    weights_of = torch.ones(3, requires_grad=True)
    assert not sd.Batches(DATA * weights_of, 16)(0)[0].requires_grad
    with pytest.raises(sd.InvalidTypeError, match="an average is of a ScoreModel"):
        sd.EMA().of(Net())


def test_a_network_that_never_was_finite_is_told():
    with pytest.raises(sd.TrainingError, match=r"in the first 3 steps .* look at what the network returns"):
        list(train(model(Bad(set(range(9)))), 5))


def test_a_model_without_weights_and_a_loss_without_gradient_are_told():
    exact = sd.Gaussian(torch.zeros(3), std=1.0).score(sd.VP())
    with pytest.raises(sd.InvalidTypeError, match="has no weights: it is an exact score"):
        train(exact)
    with pytest.raises(sd.InvalidArgumentError, match=r"one number for each sample, \[16\], got \[\]"):
        next(train(model(), loss=lambda m, data, seed: sd.losses.simple(m, data, seed=seed).mean()))
    with pytest.raises(sd.InvalidArgumentError, match="does not depend on any parameter"):
        next(train(model(), loss=lambda m, data, seed: data.square().mean(1)))


def kept(tmp_path):
    path = tmp_path / "run.safetensors"
    last(train(model(), 4, checkpoint=path))
    return path


def rewritten(path, change):
    """The file, its tensors and record changed."""
    with safe_open(path, "pt") as file:
        tensors, words = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    said = json.loads(words["sdegen"])
    change(tensors, said)
    save_file(tensors, path, {"sdegen": json.dumps(said)})


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path):
    path = kept(tmp_path)
    before = path.read_bytes()
    for options, what in (
        ({"seed": 1}, "seed 0, here 1"),
        ({"loss": sd.losses.v}, "loss weight 1.0, here 'v'"),
        ({"optimizer": lambda p: torch.optim.SGD(p, 0.1)}, "optimizer 'AdamW', here 'SGD'"),
        ({"ema": None}, "ema "),
        ({"accumulate": 2}, "accumulate 1, here 2"),
    ):
        with pytest.raises(sd.InvalidArgumentError, match=f"is of another run, with {what}"):
            train(model(), 6, checkpoint=path, **options)
    other = sd.ScoreModel(sd.VP(beta_max=10.0), Net(), "v", time=sd.model.log_sigma_time)
    with pytest.raises(sd.InvalidArgumentError, match="is of another run, with model"):
        train(other, 6, checkpoint=path)
    wide = Net()
    wide.first = torch.nn.Linear(4, 17)
    with pytest.raises(sd.InvalidArgumentError, match=r"the weights in .* are not those of Net"):
        train(model(wide), 6, checkpoint=path)
    with pytest.raises(sd.InvalidArgumentError, match="has 4 steps, more than steps=3"):
        train(model(), 3, checkpoint=path)
    assert path.read_bytes() == before


def test_a_damaged_checkpoint_is_told_and_kept(tmp_path):
    path = kept(tmp_path)
    good = path.read_bytes()
    for count in (0, 7, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:count])
        with pytest.raises(sd.InvalidArgumentError, match="not a safetensors file"):
            train(model(), 6, checkpoint=path)
        assert path.read_bytes() == good[:count]
    for change, message in (
        (lambda t, s: t.update(extra=torch.zeros(2)), "holds 'extra', which no checkpoint has"),
        (lambda t, s: t.update({"net.more": torch.zeros(2)}), "unexpected: more"),
        (lambda t, s: t.pop("net.first.weight"), "missing in the file: first.weight"),
        (lambda t, s: t.pop("ema.last.bias"), "missing in the file: last.bias"),
        (lambda t, s: t.pop("levels"), "damaged"),
        (lambda t, s: s.pop("groups"), "damaged"),
        (lambda t, s: s.update(groups=[]), "damaged, or of another optimizer"),
        (lambda t, s: s.update(format="sdegen training 9"), "of format 'sdegen training 9'"),
        (lambda t, s: s.update(step="x"), "damaged"),
    ):
        path.write_bytes(good)
        rewritten(path, change)
        with pytest.raises(sd.InvalidArgumentError, match=message):
            train(model(), 6, checkpoint=path)
    model().save(path)
    with pytest.raises(sd.InvalidArgumentError, match="checkpoints are of"):
        train(model(), 6, checkpoint=path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(sd.InvalidArgumentError, match=r"was not written by sd\.train"):
        train(model(), 6, checkpoint=path)


def test_a_full_disk_is_told_and_what_was_written_stays(tmp_path, monkeypatch):
    path = kept(tmp_path)
    before = path.read_bytes()
    script = textwrap.dedent(
        """
        import resource, sys, torch, sdegen as sd
        sys.path.insert(0, sys.argv[2])
        from test_training import model, train
        from sdegen.training import loop
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # no file may grow beyond: what a full disk does
        try:
            for state in train(model(), 8, checkpoint=sys.argv[1]):
                print(state.step)
        except OSError as error:
            print(type(error).__name__, error)
        """
    )
    run = [sys.executable, "-W", "ignore", "-c", script, str(path), os.path.dirname(__file__)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert "could not be written" in done.stdout, done
    assert "what was there before is left as it was" in done.stdout
    assert str(path) in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    monkeypatch.setattr(os, "access", lambda *a: False)
    with pytest.raises(PermissionError, match="no permission to write a checkpoint in the folder"):
        train(model(), 8, checkpoint=path)


def test_score_models_behave_as_modules_do():
    made = model(label=torch.zeros(4, dtype=torch.long))
    twin = copy.deepcopy(made)
    assert torch.equal(bits(made), bits(twin))
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(bits(made), bits(twin))
    made.net.load_state_dict(twin.net.state_dict())
    assert torch.equal(bits(made), bits(twin))
    assert {p.dtype for p in made.to(torch.float64).parameters()} == {torch.float64}
    other = made.conditioned(label=torch.ones(4, dtype=torch.long))
    assert other.net is made.net
    assert other.condition["label"].tolist() == [1, 1, 1, 1]
    assert made.condition["label"].tolist() == [0, 0, 0, 0]
    with pytest.raises(sd.InvalidTypeError, match="unknown keyword 'predict'"):
        made.conditioned(predict="noise")


def test_float64_networks_are_trained_in_float64():
    made = model(Net().double())
    state = last(train(made, 2))
    assert {p.dtype for p in made.net.parameters()} == {torch.float64}
    assert {p.dtype for p in state.ema.net.parameters()} == {torch.float64}


@pytest.mark.slow
def test_compiled_networks_are_trained():
    net = Net(dropout=0.0)
    plain = last(train(model(copy.deepcopy(net)), 4))
    compiled = last(train(model(torch.compile(copy.deepcopy(net), backend="aot_eager")), 4))
    assert torch.allclose(bits(plain.ema), bits(compiled.ema), atol=1e-5)
    assert type(compiled.ema.net) is Net


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the first batch")  # the noise is little, to tell much of the law
@pytest.mark.parametrize("name", ["simple", "ncsn", "v", "flow", "edm", "min_snr", "likelihood"])
def test_a_linear_network_finds_the_exact_score_of_a_gaussian(name):
    """Of data whose moments are exact: the noise of training is all that is left, after 26 million samples.

    The network is linear in x. It knows how a Gaussian's score depends on the level, and finds mean and variances.
    """
    objective = sd.losses.min_snr() if name == "min_snr" else getattr(sd.losses, name)
    mean, std = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    z = torch.randn(65536, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = mean + std * (z - z.mean(0)) / z.std(0, correction=0)
    # levels at which a sample tells something of the law
    process = sd.EDM(sigma_min=0.2, sigma_max=2.0) if name == "edm" else sd.VP(t_min=0.1, t_max=0.5)

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
            self.log_std = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x, t):
            level = process.level(t)
            alpha, sigma = level.alpha[:, None], level.sigma[:, None]
            return (alpha * self.mean - x) / ((alpha * self.log_std.exp()) ** 2 + sigma**2)

    made, steps = sd.ScoreModel(process, Linear(), "score"), 400
    fit = sd.train(
        made,
        [data],
        loss=objective,
        steps=steps,
        optimizer=lambda p: torch.optim.Adam(p, 5e-2),
        schedule=lambda k: min(1.0, (1.02 - k / steps) ** 2 * 2),
        ema=sd.EMA(0.2),
        progress=False,
    )
    state = last(fit)
    law = sd.Gaussian(mean, std=std)
    for lam in (-0.5, 0.0, 0.5, 1.0):
        level = process.at(lam)
        x = law.sample(500, seed=1, level=level)
        with torch.no_grad():
            far = sd.losses.fisher(state.ema, law, x, level).mean().sqrt()
        size = law.score(process)(x, level).square().mean().sqrt()
        assert float(far / size) < 1e-3, (name, lam, state.ema.net.mean, state.ema.net.log_std.exp())


@pytest.mark.slow
def test_networks_spread_by_ddp_are_trained(tmp_path):
    """Two processes: equal weights, of different noise; both go on from the file that the first wrote."""
    script = textwrap.dedent(
        """
        import sys, torch
        sys.path.insert(0, sys.argv[1])
        from test_training import Net, bits, last, model, train
        rank, group, steps = int(sys.argv[3]), sys.argv[2], int(sys.argv[4])
        where = "file://" + group + str(steps)
        torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
        torch.manual_seed(0)
        net = torch.nn.parallel.DistributedDataParallel(Net(), find_unused_parameters=True, broadcast_buffers=False)
        seen = []
        states = list(train(model(net), steps, checkpoint=group + ".safetensors"))
        assert type(states[-1].ema.net) is Net
        weights = torch.cat([p.flatten() for p in states[-1].ema.parameters()])
        print(len(states), states[0].loss, float(weights.double().sum()))
        torch.distributed.destroy_process_group()
        """
    )
    found = []
    start = [sys.executable, "-W", "ignore", "-c", script, os.path.dirname(__file__), str(tmp_path / "group")]
    for steps in (4, 7):
        runs = [
            subprocess.Popen(
                [*start, str(rank), str(steps)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in (0, 1)
        ]  # fmt: skip
        told = [run.communicate() for run in runs]
        assert [run.returncode for run in runs] == [0, 0], told
        found.append([out.split() for out, _ in told])
    assert [[count for count, _, _ in pair] for pair in found] == [["4", "4"], ["3", "3"]]
    for first, second in found:
        assert first[1] != second[1]
        assert first[2] == second[2]
