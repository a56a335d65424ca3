"""Gradients against finite differences and reference formulas; what is learned, kept and refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from onnxcalib.numeric import adaquant
from onnxcalib.numeric.adaquant import ActivationQuantizer, WeightQuantizer, error_sums, learn_block, relative_error
from onnxcalib.numeric.pairs import pair_sums
from onnxcalib.numeric.rounding import fake_quantize, quantize
from onnxcalib.spec import QParams, QuantSpec

FOUR = QuantSpec(4, signed=True, symmetric=True, axis=0)
RATES = ("WEIGHT_RATE", "WEIGHT_SCALE_RATE", "ACTIVATION_SCALE_RATE", "ZERO_POINT_RATE", "BIAS_RATE")


def make_grid(scale, zero_point, bits=4):
    return QParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int32), QuantSpec(bits))


def same_grid(one, other):
    return float(one.scale) == float(other.scale) and one.zero_point == other.zero_point and one.spec == other.spec


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_weight_is_its_integers_times_its_scale():
    position, step = 9 * draw(3, 5), torch.tensor([[0.1], [0.2], [0.3]])
    quantizer = WeightQuantizer(position, step, FOUR)
    assert torch.equal(quantizer.integers(), quantize(position, 1.0, 0, FOUR))
    torch.testing.assert_close(quantizer(torch.zeros(3, 5)), quantizer.integers() * step)
    zero, halves = torch.tensor([[-0.5], [0.0], [-0.5]]), replace(FOUR, half_steps=True)
    negative = WeightQuantizer(position, -step, halves, zero)
    torch.testing.assert_close(negative(None), (zero - quantizer.integers()) * step)


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (6, 15)])
def test_learned_integers_keep_their_pair_limit_in_the_order_of_the_kernel(shape):
    """That of a convolution, as of onnxruntime's, has channels last."""
    spec = QuantSpec(8, signed=True, symmetric=True, axis=0, pair_limit=128)
    position = 90 * draw(*shape)
    kept = WeightQuantizer(position, torch.ones(6, *[1] * (len(shape) - 1)), spec).integers()
    nearest = quantize(position, 1.0, 0, spec)
    sums, before = (pair_sums(x.movedim(1, -1).flatten(1)) for x in (kept, nearest))
    assert int(before.max()) > 128 and torch.equal(sums, before.clamp_max(128))
    assert torch.equal(kept.abs() <= nearest.abs(), torch.ones_like(kept, dtype=torch.bool))


def test_the_weight_scale_has_the_exact_gradient_of_fixed_integers():
    quantizer = WeightQuantizer(4 * draw(3, 5), torch.tensor([[0.1], [0.2], [0.3]]), FOUR).double()
    target = draw(3, 5, seed=1).double()

    def measure():
        return (quantizer(target) - target).square().sum()

    measure().backward()
    for row in range(3):
        losses = []
        for shift in (1e-4, -1e-4):
            with torch.no_grad():
                quantizer.log_scale[row] += shift
                losses.append(measure())
                quantizer.log_scale[row] -= shift
        torch.testing.assert_close(
            quantizer.log_scale.grad[row, 0], (losses[0] - losses[1]) / 2e-4, rtol=1e-5, atol=1e-6
        )


def test_a_weight_passes_its_gradient_straight_through_even_beyond_the_grid():
    quantizer = WeightQuantizer(torch.tensor([[0.4, 30.0, -30.0]]), torch.tensor([[0.5]]), FOUR)
    quantizer(None).backward(torch.tensor([[1.0, 2.0, 3.0]]))
    torch.testing.assert_close(quantizer.position.grad, 0.5 * torch.tensor([[1.0, 2.0, 3.0]]))


@pytest.mark.parametrize("zero_point", [0, 6, 15])
@pytest.mark.parametrize("fixed", [False, True])
def test_an_activation_is_fake_quantized(zero_point, fixed):
    quantizer = ActivationQuantizer(make_grid(0.3, zero_point), fixed=fixed).eval()
    x = 4 * draw(50)
    assert torch.equal(quantizer(x), fake_quantize(x, torch.tensor(0.3), zero_point, QuantSpec(4)))
    assert same_grid(quantizer.grid(), make_grid(0.3, zero_point))
    assert quantizer.log_scale.requires_grad is not fixed


def reference_gradients(x, gradient, scale, zero_point, spec):
    """LSQ+: dx = [inside], ds = round(x/s) - x/s inside, the end's distance from zero outside, dz = -s outside."""
    to_x, to_scale, to_zero = torch.zeros_like(x), 0.0, 0.0
    for i, value in enumerate(x.tolist()):
        level = round(value / scale) + zero_point
        if level < spec.qmin:
            to_scale, to_zero = to_scale + gradient[i] * (spec.qmin - zero_point), to_zero - gradient[i] * scale
        elif level > spec.qmax:
            to_scale, to_zero = to_scale + gradient[i] * (spec.qmax - zero_point), to_zero - gradient[i] * scale
        else:
            to_x[i] = gradient[i]
            to_scale = to_scale + gradient[i] * (round(value / scale) - value / scale)
    return to_x, to_scale * scale, to_zero


def test_activation_gradients_are_those_of_lsq():
    quantizer = ActivationQuantizer(make_grid(0.25, 5), mix=False).double()
    x, gradient = (2 * draw(200)).double().requires_grad_(), draw(200, seed=1).double()
    quantizer(x).backward(gradient)
    to_x, to_log_scale, to_zero = reference_gradients(x.detach(), gradient, 0.25, 5, QuantSpec(4))
    assert 20 < (to_x == 0).sum() < 180
    torch.testing.assert_close(x.grad, to_x)
    torch.testing.assert_close(quantizer.log_scale.grad, to_log_scale)
    torch.testing.assert_close(quantizer.zero_point.grad, to_zero)


def test_the_gradient_of_clipped_values_is_that_of_a_finite_difference():
    quantizer = ActivationQuantizer(make_grid(0.25, 5), mix=False).double()
    x = torch.tensor([9.0, -7.0, 8.0], dtype=torch.float64)
    quantizer(x).sum().backward()
    values = []
    for shift in (1e-5, -1e-5):
        with torch.no_grad():
            quantizer.log_scale += shift
            values.append(quantizer(x).sum())
            quantizer.log_scale -= shift
    torch.testing.assert_close(quantizer.log_scale.grad, (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-6)


def test_a_share_of_values_stays_float_in_training_alone():
    quantizer = ActivationQuantizer(make_grid(0.3, 6))
    x = draw(4000)
    torch.manual_seed(0)
    kept = (quantizer.train()(x) == x).float().mean()
    assert 0.4 < kept < 0.6
    assert torch.equal(quantizer.eval()(x), fake_quantize(x, torch.tensor(0.3), 6, QuantSpec(4)))


def test_what_stays_float_passes_its_gradient_on_and_moves_no_grid():
    quantizer = ActivationQuantizer(make_grid(0.25, 5)).double()
    x, gradient = (2 * draw(400)).double().requires_grad_(), draw(400, seed=1).double()
    y = quantizer.train()(x)
    y.backward(gradient)
    stayed = y.detach() == x.detach()
    assert 100 < stayed.sum() < 300
    to_x, to_log_scale, to_zero = reference_gradients(x.detach(), gradient * ~stayed, 0.25, 5, QuantSpec(4))
    torch.testing.assert_close(x.grad, torch.where(stayed, gradient, to_x))
    torch.testing.assert_close(quantizer.log_scale.grad, to_log_scale)
    torch.testing.assert_close(quantizer.zero_point.grad, to_zero)


@pytest.mark.parametrize("bound", [6.0, 1.0])
def test_a_grid_ends_inside_its_bound(bound):
    quantizer = ActivationQuantizer(make_grid(0.3, 0))
    with torch.no_grad():
        quantizer.log_scale += 2.0
    grid = quantizer.grid(bound)
    assert 0.999 * bound < 15 * float(grid.scale) <= bound
    assert float(quantizer.grid(float("inf")).scale) == float(quantizer.grid().scale) > 1


@pytest.mark.parametrize("power_of_two", [False, True])
def test_what_a_spec_fixes_of_a_grid_is_not_learned(power_of_two):
    spec = QuantSpec(8, signed=True, symmetric=True, power_of_two=power_of_two, least_range=1e-4)
    quantizer = ActivationQuantizer(QParams(np.float32(0.25), np.int32(0), spec))
    assert not quantizer.zero_point.requires_grad
    assert quantizer.log_scale.requires_grad != power_of_two
    assert quantizer.grid(bound=1.0).scale == pytest.approx(0.25 if power_of_two else 1 / 127)
    with torch.no_grad():
        quantizer.log_scale -= 20
    assert float(quantizer.grid().scale) * 255 >= 1e-4
    weight = WeightQuantizer(torch.zeros(2, 3), torch.ones(2, 1), replace(spec, axis=0))
    assert weight.log_scale.requires_grad != power_of_two


def test_a_zero_point_never_leaves_the_integers():
    quantizer = ActivationQuantizer(make_grid(0.3, 15), mix=False)
    with torch.no_grad():
        quantizer.zero_point += 2.0
    x = -draw(100).abs()
    grid = quantizer.grid()
    assert grid.zero_point == 15
    assert torch.equal(quantizer(x), fake_quantize(x, torch.tensor(0.3), 15, QuantSpec(4)))


class Net(nn.Module):
    """A quantized input into a quantized Linear with a bias, as a block is: a tuple comes out."""

    def __init__(self, weight, bias, *, step, grid, fixed=False):
        super().__init__()
        self.quantizer = ActivationQuantizer(grid, mix=False, fixed=fixed)
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        self.linear.bias.data = bias.clone()
        position = quantize(weight, step, 0, FOUR)
        parametrize.register_parametrization(self.linear, "weight", WeightQuantizer(position, step, FOUR), unsafe=True)
        self.linear.parametrizations.weight.original.requires_grad_(False)

    def forward(self, x):
        return (self.linear(self.quantizer(x)),)


def make_task(
    *, shift_bias=0.0, stretch=1.0, shift_weight=0, stretch_input=1.0, zero_point=7, shift_zero_point=0, fixed=False
):
    """A net whose bias, weights or input grid are off by so much, and batches of the net that was meant."""
    weight, bias = draw(6, 8), draw(6, seed=1)
    step = weight.abs().amax(1, keepdim=True) / 7
    good = Net(weight, bias, step=step, grid=make_grid(0.4, zero_point)).eval()
    net = Net(weight, bias + shift_bias, step=step, grid=make_grid(0.4 * stretch_input, zero_point), fixed=fixed)
    quantizer = net.linear.parametrizations.weight[0]
    quantizer.start = step * stretch
    with torch.no_grad():
        quantizer.position[0] += shift_weight
        net.quantizer.zero_point += shift_zero_point
    x = draw(256, 8, seed=2)
    with torch.no_grad():
        y = good(x)[0]
    rng = np.random.default_rng(0)

    def draw_batch():
        rows = rng.choice(192, 32, replace=False)
        return [x[rows]], [y[rows]]

    return net, draw_batch, lambda: [([x[192:224]], [y[192:224]]), ([x[224:]], [y[224:]])]


def learn(task, steps=20):
    net, draw_batch, held_out = task
    return learn_block(net, draw_batch, held_out, steps=steps, bias_units={net.linear.bias: torch.tensor(1.0)})


@pytest.fixture
def only(monkeypatch):
    """Makes one rate large, the others zero."""

    def set_rates(chosen, rate):
        for name in RATES:
            monkeypatch.setattr(adaquant, name, rate if name == chosen else 0.0)

    return set_rates


@pytest.fixture
def fast(only):
    only("BIAS_RATE", 0.03)


@pytest.mark.parametrize(
    ("name", "shift"),
    [
        ("BIAS_RATE", {"shift_bias": 0.3}),
        ("WEIGHT_SCALE_RATE", {"stretch": 1.2}),
        ("ACTIVATION_SCALE_RATE", {"stretch_input": 1.3}),
        ("ZERO_POINT_RATE", {"shift_zero_point": 4}),
        ("WEIGHT_RATE", {"shift_weight": 2}),
    ],
)
def test_what_was_shifted_is_learned_back(only, name, shift):
    only(name, 0.2 if name in ("ZERO_POINT_RATE", "WEIGHT_RATE") else 0.02)
    task = make_task(**shift)
    outcome = learn(task, steps=40)
    assert outcome.after < 0.2 * outcome.before and outcome.step > 0


@pytest.mark.usefixtures("fast")
def test_the_module_ends_at_the_iterate_that_the_outcome_names():
    task = make_task(shift_bias=0.3, stretch=1.1)
    outcome = learn(task)
    net, _, held_out = task
    assert not net.training
    with torch.no_grad():
        pairs = [(net(*inputs)[0], targets[0]) for inputs, targets in held_out()]
    error = sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)
    assert error == pytest.approx(outcome.after, rel=1e-5)
    assert outcome.before == pytest.approx(learn(make_task(shift_bias=0.3, stretch=1.1)).before)


def test_rates_that_only_harm_leave_the_start(monkeypatch):
    for name in RATES:
        monkeypatch.setattr(adaquant, name, 1e4)
    task = make_task(shift_bias=0.01)
    before = {name: value.clone() for name, value in task[0].state_dict().items()}
    outcome = learn(task)
    assert outcome.step == 0 and outcome.after == outcome.before
    for name, value in task[0].state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.usefixtures("fast")
def test_a_loss_that_is_no_number_leaves_the_start():
    net, draw_batch, held_out = make_task(shift_bias=0.01)

    def draw_bad():
        inputs, targets = draw_batch()
        return [inputs[0] * float("nan")], targets

    before = net.linear.bias.detach().clone()
    outcome = learn((net, draw_bad, held_out))
    assert outcome.step == 0 and torch.equal(net.linear.bias, before)


def test_a_zero_point_at_the_least_integer_is_pinned(monkeypatch):
    for name in RATES:
        monkeypatch.setattr(adaquant, name, 0.03)
    task = make_task(zero_point=0, stretch_input=1.3)
    outcome = learn(task)
    grid = task[0].quantizer.grid()
    assert outcome.step and grid.zero_point == 0 and float(grid.scale) != pytest.approx(0.52)
    assert not task[0].quantizer.zero_point.requires_grad


def test_a_fixed_grid_stays(monkeypatch):
    for name in RATES:
        monkeypatch.setattr(adaquant, name, 0.01)
    task = make_task(shift_bias=0.3, stretch_input=1.3, fixed=True)
    outcome = learn(task)
    assert outcome.step and same_grid(task[0].quantizer.grid(), make_grid(0.52, 7))


def test_error_sums_leave_out_integers_and_do_not_overflow_in_float16():
    outputs = [torch.full((3,), 300.0).half(), torch.tensor([1, 2])]
    targets = [torch.full((3,), 600.0).half(), torch.tensor([1, 3])]
    assert error_sums(outputs, targets).tolist() == [[3 * 300.0**2, 3 * 600.0**2]]


class Scaled(nn.Module):
    """Outputs of very different power, each with a relative error of its own, and one that is no number."""

    def __init__(self, first, second):
        super().__init__()
        self.factors = nn.ParameterList([torch.tensor(1 + first), torch.tensor(1 + second)])

    def forward(self, a, b):
        return a * self.factors[0], b * self.factors[1], a > 0


def test_held_out_outputs_have_the_loss_that_is_learned_each_relative_to_its_own_power():
    a, b = 100 * draw(8, 3), draw(8, 3, seed=1)
    targets = [a, b, a > 0]
    halves = [[[t[part] for t in each] for each in ([a, b], targets)] for part in (slice(0, 4), slice(4, 8))]
    for first, second in ((0.03, 0.1), (0.02, 1.0)):
        module = Scaled(first, second)
        units = {module.factors[0]: torch.tensor(1.0)}
        learned = relative_error(module(a, b), targets).item()
        outcome = learn_block(module, lambda: ([a, b], targets), lambda: halves, steps=1, bias_units=units)
        assert learned == pytest.approx((first**2 + second**2) / 2, rel=1e-4)
        assert outcome.before == pytest.approx(learned, rel=1e-4)


def test_what_no_gradient_reaches_is_refused():
    x = draw(4, 3)
    module = Scaled(0.0, 0.0)
    module.forward = lambda x: ((x > 0).float(),)
    units = {module.factors[0]: torch.tensor(1.0)}
    with pytest.raises(RuntimeError, match="nothing that is learned moves a floating-point output by a gradient"):
        learn_block(module, lambda: ([x], [x]), lambda: [([x], [x])], steps=1, bias_units=units)


@pytest.mark.usefixtures("fast")
def test_learning_repeats_with_the_seed():
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        task = make_task(shift_bias=0.3)
        task[0].quantizer.mix = True
        learn(task)
        states.append(task[0].state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_error_is_relative_to_each_output_and_averaged():
    a, b = draw(4, 3), draw(4, 3, seed=1)
    found = relative_error([a, 10 * b], [b, 10 * a])
    wanted = ((a - b).square().sum() / b.square().sum() + (a - b).square().sum() / a.square().sum()) / 2
    torch.testing.assert_close(found, wanted)
    assert torch.isfinite(relative_error([a], [torch.zeros(4, 3)]))
