# SPDX-License-Identifier: Apache-2.0
import pytest
from torch import nn

from common.engines.method import Method, Update
from common.losses.similarity import SquaredError
from tests.engines.synthetic import adacs_method, adam, displacement_objective, method_of


def update(name="displacement", trains=("model",), differentiates=None):
    return Update(name, trains, displacement_objective(), adam(1e-3), differentiates)


def method(modules=("model",), updates=None, **form):
    updates = [update()] if updates is None else updates
    return Method({name: nn.Conv2d(1, 1, 1) for name in modules}, SquaredError(), updates, **form)


def test_network_and_estimator_are_found_by_their_names():
    network, score = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    adacs = adacs_method(network, score)
    assert adacs.network is network and adacs.estimator_network is score
    assert adacs.update_names == {"displacement", "score"}
    assert method().estimator_network is None


def test_update_differentiates_what_it_trains_unless_it_says_otherwise():
    assert update(trains=["model", "model_x"]).gradients == {"model", "model_x"}
    assert update(differentiates=["model_x"]).gradients == {"model_x"}


def test_solver_has_a_method_without_updates():
    assert method(updates=[]).update_names == frozenset()


@pytest.mark.parametrize("text", ["true", "True", "on", 1])
def test_switches_are_read_as_a_person_means_them(text):
    assert method(bidirectional=text, inside_only="false").bidirectional is True
    assert method(bidirectional=text, inside_only="false").inside_only is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modules": ["model_score"]}, r"modules: expected 'model' and names that begin with 'model_', got \['model_s"),
        ({"modules": ["model", "score"]}, "modules: expected 'model' and names that begin with 'model_'"),
        ({"updates": [update(trains=["model_x"])]}, r"updates, estimator: expected names among .*got \['model_x'\]"),
        ({"updates": [update(differentiates=["x"])]}, r"updates, estimator: expected names among .*got \['x'\]"),
        ({"estimator": "model_score"}, r"updates, estimator: expected names among .*got \['model_score'\]"),
        ({"updates": [update(), update()], "second_forward": True}, "updates: expected different names"),
        (
            {"modules": ["model", "model_x"], "updates": [update("x", ["model_x"]), update()]},
            r"updates: .* a first one that trains 'model', got \[\('x', \['model_x'\]\), \('displacement', \['model'\]",
        ),
        ({"updates": [update(), update("other")]}, "second_forward must be true where more than one update"),
        ({"inverse_by_negation": True}, "inverse_by_negation: bidirectional must be true"),
        ({"through_estimator": True}, "through_estimator: estimator_input must be 'fixed_warped' with it, got 'fixed'"),
        ({"estimator_input": "warped"}, "estimator_input: expected one of .*got 'warped'"),
        ({"padding": "zero"}, "padding: expected one of zeros, border, reflection, got 'zero'"),
        ({"foreground": "perhaps"}, "foreground: expected true or false, got 'perhaps'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        method(**arguments)


def test_updates_that_differentiate_the_displacement_each_need_their_own_forward():
    shared = [update(), update("other", differentiates=["model"])]
    assert len(method(updates=shared, second_forward=True).updates) == 2
    assert method_of(nn.Identity()).second_forward is False
