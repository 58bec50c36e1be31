# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.losses.objective import Objective


class Value(nn.Module):
    """A term that reads one number of the step, says so, and counts its calls."""

    def __init__(self, name, log=None):
        super().__init__()
        self.name, self.log, self.calls = name, [] if log is None else log, 0

    def forward(self, step):
        self.log.append(self.name)
        self.calls += 1
        return 1.0 * getattr(step, self.name)


class Drawn(nn.Module):
    """A weight that the step holds, with a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor(2.0))

    def forward(self, step):
        return self.factor * step.condition.mean()


def step_of(**values):
    return SimpleNamespace(
        condition=torch.tensor([[0.25], [0.75]]),
        **{name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()},
    )


def test_total_is_the_weighted_sum_and_terms_are_those_before_their_weights():
    step = step_of(a=2.0, b=3.0, c=5.0)
    terms = Objective({"x": (1.0, Value("a")), "y": (0.5, Value("b")), "z": [2, Value("c")]})(step)
    assert list(terms) == ["total", "x", "y", "z"]
    assert {name: float(value) for name, value in terms.items()} == {"total": 13.5, "x": 2.0, "y": 3.0, "z": 5.0}
    terms["total"].backward()
    assert [float(value.grad) for value in (step.a, step.b, step.c)] == [1.0, 0.5, 2.0]


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "a", "b"), ("b", "c", "a")])
def test_terms_are_computed_logged_and_added_up_in_their_order(order):
    """Of float32 numbers the order decides on the sum."""
    values, log = {"a": 1e8, "b": -1e8, "c": 1.0}, []
    step = SimpleNamespace(**{name: torch.tensor(value) for name, value in values.items()})
    terms = Objective({name: (1.0, Value(name, log)) for name in order})(step)
    assert log == list(order) and list(terms) == ["total", *order]
    expected = torch.tensor(values[order[0]])
    for name in order[1:]:
        expected = expected + torch.tensor(values[name])
    assert torch.equal(terms["total"], expected)


def test_term_of_weight_0_is_logged_once_and_has_no_gradient():
    step, watched = step_of(a=2.0, b=float("nan")), Value("b")
    terms = Objective({"mu": (0.0, watched), "x": (3, Value("a"))})(step)
    assert watched.calls == 1 and terms["mu"].isnan() and not terms["mu"].requires_grad
    assert float(terms["total"].detach()) == 6.0
    terms["total"].backward()
    assert step.b.grad is None and float(step.a.grad) == 3.0


def test_term_that_is_none_is_left_out():
    step, objective = step_of(a=2.0), Objective({"x": (1.0, Value("a")), "y": (0.5, None), "total": (1.0, None)})
    assert list(objective(step)) == ["total", "x"] and list(objective.weights) == ["x"]
    with pytest.raises(ValueError, match="expected names other than 'total' and a weight that is not 0, got"):
        Objective({"y": (0.5, None)})


@pytest.mark.parametrize("weight", [Drawn(), lambda step: 2 * step.condition.mean()])
def test_weight_may_be_a_function_of_the_step(weight):
    step = step_of(a=2.0, b=3.0)
    terms = Objective({"x": (1.0, Value("a")), "y": (weight, Value("b"))})(step)
    assert float(terms["total"].detach()) == pytest.approx(2.0 + 2 * 0.5 * 3.0) and float(terms["y"].detach()) == 3.0
    assert float(Objective({"y": (weight, Value("b"))})(step)["total"].detach()) == pytest.approx(3.0)


def test_modules_of_terms_and_weights_are_those_of_the_objective():
    drawn, term = Drawn(), nn.BatchNorm1d(2)
    objective = Objective({"x": (drawn, term), "y": (2.0, Value("a"))})
    assert {drawn, term} <= set(objective.modules())
    assert {"terms.x.running_mean", "weight_modules.x.factor"} <= set(objective.state_dict())
    assert objective.double().weights["x"].factor.dtype == torch.float64


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "terms: expected names other than 'total' and a weight that is not 0"),
        ({"x": (0, Value("a"))}, "terms: expected names other than 'total' and a weight that is not 0"),
        ({"total": (1.0, Value("a"))}, "terms: expected names other than 'total'"),
        ({"x": (float("nan"), Value("a"))}, "terms: expected a number of at least 0 as weight of 'x', got nan"),
        ({"x": (float("inf"), Value("a"))}, "terms: expected a number of at least 0 as weight of 'x', got inf"),
        ({"x": (-0.1, Value("a"))}, "terms: expected a number of at least 0 as weight of 'x', got -0.1"),
        ({"x": ("1.0", Value("a"))}, "terms: expected a number of at least 0 as weight of 'x', got '1.0'"),
        ({"x": (None, Value("a"))}, "terms: expected a number of at least 0 as weight of 'x', got None"),
        ({"x": (True, Value("a"))}, "terms: expected a number of at least 0 as weight of 'x', got True"),
    ],
)
def test_objectives_that_cannot_be_are_refused(terms, message):
    with pytest.raises(ValueError, match=message):
        Objective(terms)
