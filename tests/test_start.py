"""Where samples start, and from which noise: the prior, what is said without one, seeds."""

from __future__ import annotations

import logging
import math
import random

import numpy as np
import pytest
import torch

import sdegen as sd

F64 = torch.float64
DATA = sd.GaussianMixture(torch.tensor([[-5.0, -5.0], [5.0, 5.0]], dtype=F64), stds=1.0, weights=[0.2, 0.8])
KNOWN = sd.Gaussian(DATA.mean(), cov=DATA.cov())
SHORT = sd.VP(beta_max=4.0)  # alpha/sigma is 0.39 at t_max
PROCESSES = {"VP": sd.VP(), "VE": sd.VE(sigma_max=50.0), "EDM": sd.EDM(), "Flow": sd.Flow()}


def mass(process, n, prior, seed=0):
    """The share of n samples in the smaller mode."""
    x = sd.sample(DATA.score(process), (n, 2), steps=30, solver=sd.dpmpp(3), prior=prior, seed=seed)
    return float((x.sum(1) < 0).double().mean())


def z_score(share, n):
    """How many standard errors a share of n samples is from 0.2."""
    return (share - 0.2) / math.sqrt(0.2 * 0.8 / n)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_prior_makes_the_masses_right(name):
    """20000 samples; |z| < 5.5 fails by chance in fewer than 4e-8 of all seeds."""
    assert abs(z_score(mass(PROCESSES[name], 20_000, KNOWN), 20_000)) < 5.5


def test_without_a_prior_a_short_process_has_wrong_masses():
    """The power of the test above: where x holds a third of the data, the start alone is seen by 20 standard errors."""
    with pytest.warns(UserWarning, match="prior="):
        assert z_score(mass(SHORT, 5000, None), 5000) > 20
    assert abs(z_score(mass(SHORT, 5000, DATA), 5000)) < 5.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VP", "VE", "EDM"])
def test_the_masses_of_many_samples(name):
    """160000 samples: without a prior they are off by more than 5.5 standard errors (4e-8), with it by fewer."""
    n = 160_000
    assert z_score(mass(PROCESSES[name], n, None), n) > 5.5
    assert abs(z_score(mass(PROCESSES[name], n, KNOWN), n)) < 5.5


class Law:
    """A law of a user's own, N(2, 4^2) in each coordinate, with no more than sample and log_prob."""

    def sample(self, n, *, seed, level, dtype):
        z = sd.noise.normals(seed, (2,), (3, 0, 0, 0), dtype=dtype)
        return (2 * level.alpha + torch.sqrt(16 * level.alpha**2 + level.sigma**2) * z.double()).to(dtype)

    def log_prob(self, x, level):
        return torch.distributions.Normal(2.0, 4.0).log_prob(x).sum(1)


PRIORS = {
    "numbers": (3.0, 4.0),
    "arrays": (np.array([3.0, 3.0]), np.float32(4)),
    "tensors": (torch.tensor([3.0, 3.0]), [4.0, 4.0]),
    "Gaussian": KNOWN,
    "mixture": DATA,
    "own": Law(),
}


@pytest.mark.parametrize("name", PRIORS)
def test_every_kind_of_prior_is_the_law_at_the_first_time(name):
    """Its mean and standard deviation at t_max: 4000 states, |z| < 6 for the mean, 2e-9 a case."""
    prior = PRIORS[name]
    path = sd.draw(DATA.score(SHORT), (4000, 2), steps=1, prior=prior, seed=1, path=True).path
    mean, std = {"own": (2.0, 4.0)}.get(name, (3.0, math.sqrt(17) if name in ("Gaussian", "mixture") else 4.0))
    level = SHORT.level(1.0)
    want = float(level.alpha * mean)
    width = float(torch.sqrt((level.alpha * std) ** 2 + level.sigma**2))
    assert abs(float(path[0].mean()) - want) < 6 * width / math.sqrt(4000)  # coordinates may be one and the same


@pytest.mark.parametrize("options", [{"nfe": 9}, {"tol": 1e-2}, {"nfe": 9, "start": 0.8}], ids=str)
@pytest.mark.parametrize("name", ["numbers", "Gaussian", "own"])
def test_a_prior_does_not_depend_on_the_batch(options, name):
    model, prior = DATA.score(SHORT), PRIORS[name]

    def run(n, size):
        return sd.sample(model, (n, 2), prior=prior, seed=4, batch_size=size, **options)

    whole = run(7, 4)
    assert torch.equal(run(7, None), whole)
    assert torch.equal(run(3, 4), whole[:3])
    assert torch.equal(run(9, 4)[:7], whole)


def test_the_warning_is_at_t_max_too_and_goes_with_a_prior(recwarn):
    for process in (SHORT, sd.EDM(sigma_max=10.0), sd.Flow(t_max=0.9), sd.DiscreteVP(torch.linspace(1e-4, 0.02, 100))):
        with pytest.warns(UserWarning, match=r"at t_max.*prior=") as seen:
            sd.sample(DATA.score(process), (2, 2), nfe=3)
        assert len(seen) == 1
        assert seen[0].filename == __file__
    for process in (SHORT, sd.EDM(sigma_max=10.0)):
        sd.sample(DATA.score(process), (2, 2), nfe=3, prior=KNOWN)
    for process in (sd.VP(), sd.EDM(), sd.VE(), sd.Flow(), sd.Cosine(), sd.SubVP(), sd.DiscreteVP()):
        sd.sample(DATA.score(process), (2, 2), nfe=3)
    assert not recwarn


@pytest.mark.parametrize(
    "prior",
    [
        "data",
        Law,
        torch.ones(2),
        (1.0, -1.0),
        (float("nan"), 1.0),
        ([1.0, 2.0, 3.0], 1.0),
        torch.distributions.Normal(torch.zeros(2), torch.ones(2)),
    ],
)
def test_what_is_no_prior_is_refused_before_the_first_evaluation(prior):
    model = sd.ScoreModel(sd.VP(), lambda x, t: pytest.fail("called"), "noise")
    with pytest.raises((sd.InvalidArgumentError, sd.InvalidTypeError)):
        sd.sample(model, (3, 2), prior=prior)


def test_a_law_must_return_states_and_x_is_not_beside_a_prior():
    class Lists(Law):
        def sample(self, n, *, seed, level, dtype):
            return [[0.0, 0.0]] * n

    with pytest.raises(sd.InvalidArgumentError, match="prior's sample"):
        sd.sample(DATA.score(SHORT), (3, 2), prior=Lists())
    with pytest.raises(sd.InvalidArgumentError, match="prior"):
        sd.sample(DATA.score(SHORT), (3, 2), prior=KNOWN, x=torch.zeros(3, 2))


def test_encode_takes_the_prior_of_sample():
    x = torch.ones(3, 2, dtype=F64)
    assert torch.equal(sd.encode(DATA.score(SHORT), x, prior=KNOWN), sd.encode(DATA.score(SHORT), x))
    with pytest.raises(sd.InvalidTypeError, match="prior"):
        sd.encode(DATA.score(SHORT), x, prior="data")


MODEL = DATA.score(sd.VP())
RUNS = {
    "sample": lambda **options: sd.sample(MODEL, (3, 2), nfe=4, **options),
    "tol": lambda **options: sd.sample(MODEL, (3, 2), tol=0.1, **options),
    "edit": lambda **options: sd.edit(MODEL, torch.ones(3, 2), 0.5, nfe=4, **options),
    "forward": lambda **options: sd.forward(sd.VP(), torch.ones(3, 2), [0.1, 0.5, 1.0], **options),
}


@pytest.mark.parametrize("name", RUNS)
def test_no_seed_is_a_fresh_one_that_the_log_names(name, caplog):
    run = RUNS[name]
    with caplog.at_level(logging.INFO, logger="sdegen"):
        first, second = run(), run()
    assert not torch.equal(first, second)
    seeds = [int(record.args[0]) for record in caplog.records if record.name == "sdegen"]
    assert torch.equal(run(seed=seeds[0]), first)
    assert torch.equal(run(seed=seeds[-1]), second)


@pytest.mark.parametrize("name", RUNS)
def test_a_generator_gives_its_next_number(name):
    run = RUNS[name]
    made = torch.Generator().manual_seed(3)
    first, second = run(seed=made), run(seed=made)
    assert torch.equal(run(seed=torch.Generator().manual_seed(3)), first)
    assert not torch.equal(first, second)


def test_the_seed_of_a_solution_makes_it_again():
    for seed in (None, 5, np.int64(5), torch.tensor([7, 8, 9]), torch.Generator().manual_seed(1)):
        found = sd.draw(MODEL, (3, 2), nfe=4, seed=seed)
        assert torch.equal(sd.draw(MODEL, (3, 2), nfe=4, seed=found.seed).x, found.x)


def test_no_global_generator_is_touched():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for run in RUNS.values():
        run()
    sd.sample(MODEL, (3, 2), nfe=4, solver=sd.ddpm())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def fails(x, t):
    raise RuntimeError("broken")


BROKEN = sd.ScoreModel(sd.VP(), fails)
BROKEN_SDE = sd.SDE.from_functions(fails, lambda x, t: torch.ones_like(x))


@pytest.mark.parametrize(
    "run",
    [
        lambda seed: sd.sample(BROKEN, (2, 2), seed=seed),
        lambda seed: sd.sample(BROKEN, (2, 2), tol=0.1, seed=seed),
        lambda seed: sd.edit(BROKEN, torch.zeros(2, 2), 0.5, seed=seed),
        lambda seed: sd.forward(BROKEN_SDE, torch.zeros(2, 2), [0.0, 1.0], seed=seed),
    ],
    ids=["sample", "tol", "edit", "forward"],
)
def test_an_exception_names_the_seed(run):
    for seed, word in ((12345, "12345"), (torch.tensor([1, 2]), "given seeds"), (None, "seed=")):
        with pytest.raises(RuntimeError, match="broken") as caught:
            run(seed)
        assert any(word in note for note in caught.value.__notes__)
