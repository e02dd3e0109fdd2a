"""Parameter groups: every parameter has one group, no group is without effect, and rates are set by name."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from bbu_train.errors import InputError
from bbu_train.optimizer.adamw import build
from bbu_train.optimizer.groups import learning_rates, parameters_by_group, set_learning_rates

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
RATES = {"vision": 2e-6, "merger": 1e-5, "llm": 1e-5, "adapter": 1e-4, "detection": 1e-4}


def load_config(name: str) -> DictConfig:
    """Return conf/optimizer/<name>.yaml, with the model and engine settings that it refers to."""
    others = {"model": {"learning_rates": RATES}, "engine": {"precision": "fp32"}}
    return OmegaConf.create({**others, "optimizer": OmegaConf.load(CONF / f"{name}.yaml")}).optimizer


def named(**modules: nn.Module) -> nn.Module:
    """Return a module with these submodules: the groups look at names only."""
    return nn.ModuleDict(modules)


def linear() -> nn.Linear:
    return nn.Linear(2, 2)


class Model(nn.Module):
    """The module names of the real model, with one small layer each."""

    def __init__(self, with_head: bool = True, tied: bool = True):
        super().__init__()
        visual = named(patch_embed=named(proj=linear()), blocks=nn.ModuleList([linear()]), merger=named(mlp=linear()))
        language_model = named(embed_tokens=nn.Embedding(3, 2), norm=nn.LayerNorm(2))
        lm_head = nn.Linear(2, 3, bias=False)
        if tied:
            lm_head.weight = language_model.embed_tokens.weight
        self.backbone = named(model=named(visual=visual, language_model=language_model), lm_head=lm_head)
        head = named(vision_adapter=linear(), language_adapter=linear(), decoder=linear())
        self.head = head if with_head else None


def adamw(**changes) -> dict:
    """Return the arguments in conf/optimizer/adamw.yaml, with changed or added groups."""
    arguments = OmegaConf.to_container(load_config("adamw"), resolve=True)
    arguments = {key: value for key, value in arguments.items() if not key.startswith("_")}
    for group, change in changes.items():
        arguments["groups"][group] = {**arguments["groups"].get(group, {}), **change}
    return arguments


def names_by_group(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, set[str]]:
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        group: {name_of[id(parameter)] for parameter in parameters}
        for group, parameters in parameters_by_group(optimizer).items()
    }


def test_every_parameter_has_exactly_one_group():
    model = Model()
    members = [parameter for group in parameters_by_group(build(model, **adamw())).values() for parameter in group]
    assert len(members) == len({id(parameter) for parameter in members})
    assert {id(parameter) for parameter in members} == {id(parameter) for parameter in model.parameters()}


def test_the_merger_has_its_own_group_and_is_not_in_vision():
    model = Model()
    members = names_by_group(model, build(model, **adamw()))
    prefix = "backbone.model.visual."
    assert members["merger"] == {f"{prefix}merger.mlp.weight", f"{prefix}merger.mlp.bias"}
    assert {name.removeprefix(prefix).split(".")[0] for name in members["vision"]} == {"patch_embed", "blocks"}
    assert {name.split(".")[1] for name in members["adapter"]} == {"vision_adapter", "language_adapter"}
    assert members["detection"] == {"head.decoder.weight", "head.decoder.bias"}


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_matrix_belongs_to_the_language_model_tied_or_not(tied):
    model = Model(tied=tied)
    members = parameters_by_group(build(model, **adamw()))
    assert any(parameter is model.backbone["lm_head"].weight for parameter in members["llm"])
    assert len(members["llm"]) == (3 if tied else 4)


def test_a_tied_parameter_goes_where_its_first_name_goes_and_both_groups_count_as_matched():
    groups = {
        "output": {"pattern": "lm_head", "submodule": "backbone", "lr": 1e-3},
        "others": {"pattern": "", "submodule": "backbone", "lr": 1e-4},
    }
    model = Model(tied=True)
    members = parameters_by_group(build(model, **{**adamw(), "groups": groups}))
    assert any(parameter is model.backbone["lm_head"].weight for parameter in members["others"])
    assert "output" not in members


def test_parameters_of_no_group_are_named():
    model = Model()
    model.head["query"] = nn.Embedding(2, 2)
    model.extra = linear()
    with pytest.raises(InputError, match=r"2 parameters belong to no group: extra\.weight, extra\.bias\. Add a group"):
        build(model, **adamw())


def test_a_group_that_matches_nothing_is_named_with_its_pattern():
    with pytest.raises(InputError, match=r'group queries matches nothing: no parameter has "head\.query" in its name'):
        build(Model(), **adamw(queries={"pattern": r"head.query", "submodule": "head", "lr": 1e-4}))


def test_a_group_that_comes_too_late_is_told_which_groups_took_its_parameters():
    with pytest.raises(InputError, match=r"(?s)group narrow is empty.*belongs to an earlier group: detection \(2\)"):
        build(Model(), **adamw(narrow={"pattern": r"^head\.decoder", "submodule": "head", "lr": 1e-4}))


def test_the_groups_of_an_absent_head_may_be_empty():
    members = parameters_by_group(build(Model(with_head=False), **adamw()))
    assert list(members) == ["merger", "vision", "llm"]


def test_rate_zero_computes_no_gradient_for_the_group_and_lets_gradients_through():
    model = Model()
    optimizer = build(model, **adamw(adapter={"lr": 0}))
    model.head["vision_adapter"](model.backbone["model"]["visual"]["blocks"][0](torch.ones(1, 2))).sum().backward()
    assert model.head["vision_adapter"].weight.grad is None
    assert model.backbone["model"]["visual"]["blocks"][0].weight.grad.abs().sum() > 0
    assert "adapter" not in learning_rates(optimizer)


def test_parameters_that_the_model_froze_stay_frozen():
    model = Model()
    model.head["decoder"].weight.requires_grad_(False)
    members = names_by_group(model, build(model, **adamw()))
    assert members["detection"] == {"head.decoder.bias"}
    assert not model.head["decoder"].weight.requires_grad


def test_norms_and_biases_do_not_decay():
    model = Model()
    optimizer = build(model, **adamw())
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.01 if parameter.ndim >= 2 else 0)


def test_a_model_with_every_group_frozen_is_refused():
    frozen = {name: {"lr": 0.0} for name in adamw()["groups"]}
    with pytest.raises(InputError, match="every parameter is frozen"):
        build(Model(), **adamw(**frozen))


def test_all_problems_are_reported_at_once_and_nothing_is_frozen():
    model = Model()
    changes = {"vision": {"lr": -1.0}, "llm": {"lr": float("nan")}, "merger": {"pattern": "("}, "adapter": {"lr": 0}}
    with pytest.raises(InputError, match=r"(?s)5 problems.*betas.*merger.pattern=.*vision.lr=-1.*llm.lr=nan.*new"):
        build(model, **{**adamw(**changes, new={"pattern": "x"}), "betas": [0.9]})
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_rates_follow_the_multiplier_by_name():
    optimizer = build(Model(), **adamw())
    before = learning_rates(optimizer)
    set_learning_rates(optimizer, 0.25)
    set_learning_rates(optimizer, 0.5)
    assert learning_rates(optimizer) == {name: rate / 2 for name, rate in before.items()}
    assert before["vision"] == 2e-6


def test_each_group_moves_by_its_own_rate():
    model = Model()
    optimizer = build(model, **{**adamw(), "weight_decay": 0.0})
    before = {group: [p.detach().clone() for p in params] for group, params in parameters_by_group(optimizer).items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for group, parameters in parameters_by_group(optimizer).items():
        moved = torch.stack([(old - new).detach().mean() for old, new in zip(before[group], parameters, strict=True)])
        expected = torch.full_like(moved, learning_rates(optimizer)[group])
        torch.testing.assert_close(moved, expected, rtol=0.05, atol=1e-8)


@pytest.mark.parametrize("choice", ["adamw", "adamw_uniform"])
def test_the_yaml_builds_an_optimizer_over_all_parameters_of_the_model(choice):
    model = Model()
    optimizer = instantiate(load_config(choice), _convert_="all")(model)
    members = [parameter for group in parameters_by_group(optimizer).values() for parameter in group]
    assert {id(parameter) for parameter in members} == {id(parameter) for parameter in model.parameters()}
