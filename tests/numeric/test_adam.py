"""Adam: as torch's own to the last bit."""

import math

import torch

from onnxcalib.numeric.adam import Adam

STEPS = 12


def lose(variables, step):
    """A loss of which the last variable is a part in every other step alone."""
    used = variables if step % 2 else variables[:-1]
    return sum(((each - 3) ** 4).sum() * (number + 1) for number, each in enumerate(used))


def learn_by_torch(variables, rates, decay):
    groups = [{"params": [each], "lr": rate} for each, rate in zip(variables, rates, strict=True)]
    adam = torch.optim.Adam(groups, betas=(0.9, decay))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    for step in range(STEPS):
        adam.zero_grad()
        lose(variables, step).backward()
        adam.step()
        schedule.step()


def test_steps_are_those_of_torch_and_a_variable_without_a_gradient_stays():
    start = [torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    rates, decay = (0.1, 0.01, 0.5), 0.99
    wanted, found = ([each.clone().requires_grad_() for each in start] for _ in range(2))
    learn_by_torch(wanted, rates, decay)
    adam = Adam([([each], rate) for each, rate in zip(found, rates, strict=True)], square_decay=decay)
    for step in range(STEPS):
        last = found[-1].detach().clone()
        adam.step(lose(found, step))
        assert torch.equal(last, found[-1]) == (step % 2 == 0)
        now, before = (1 + math.cos(math.pi * each / STEPS) for each in (step + 1, step))
        adam.scale_rates(now / before)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)
