"""Every claim can be trained, and its arms differ only in what it claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alexnet.ablation.ablate import arm_recipe, base_recipe
from alexnet.ablation.claims import CLAIMS, find_claim
from alexnet.errors import UserError
from alexnet.models.architectures import architecture
from alexnet.models.spec import apply_modifications, layers

BASES = {"digits": base_recipe(), "folder": base_recipe(data=Path("images"))}


@pytest.mark.parametrize("base", BASES.values(), ids=list(BASES))
@pytest.mark.parametrize("claim", CLAIMS.values(), ids=list(CLAIMS))
def test_both_arms_can_be_built_and_differ(claim, base):
    recipes = [arm_recipe(arm, base) for arm in (claim.part, claim.without)]
    for recipe in recipes:
        r = recipe.model
        spec = architecture(
            r.arch, num_classes=10, in_channels=3, image_size=r.image_size, width=r.width, dropout=r.dropout,
            norm=None if r.norm == "auto" else r.norm, activation=None if r.activation == "auto" else r.activation,
            init=None if r.init == "auto" else r.init,
        )  # fmt: skip
        assert layers(apply_modifications(spec, r.spec_edits))
    arms = (claim.part, claim.without)
    assert recipes[0] != recipes[1] or arms[0].kind != arms[1].kind or arms[1].other_seeds
    assert recipes[0].schedule.epochs == recipes[1].schedule.epochs
    assert recipes[0].schedule.epochs == base.schedule.epochs * (3 if claim.measure == "epochs" else 1)
    assert claim.statement.endswith(".")
    assert claim.source
    assert claim.published


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lrn", {"norm"}), ("overlapping-pool", {"spec_edits"}), ("weight-decay", {"weight_decay"}),
        ("dropout", {"dropout"}), ("pca-noise", {"pca_noise"}),
        ("augmentation", {"crop", "flip"}), ("two-towers", {"spec_edits"}), ("tower-talk", {"spec_edits"}),
        ("init", {"init", "std"}), ("relu-vs-sigmoid", {"activation"}),
        ("batchnorm", {"norm"}), ("depth", {"spec_edits"}), ("relu-vs-tanh", {"activation"}),
        ("momentum", {"momentum", "lr"}),
        ("nothing", set()), ("ten-crop", set()),
    ],
)  # fmt: skip
def test_arms_differ_in_nothing_else(name, settings):
    base = base_recipe(data=Path("images"))
    one, other = (json.loads(arm_recipe(arm, base).to_json()) for arm in (CLAIMS[name].part, CLAIMS[name].without))
    assert {key for key in one if one[key] != other[key]} == settings


def test_the_bench_is_alexnet_in_kind():
    r = base_recipe(data=Path("images"))
    spec = architecture(r.model.arch, norm=r.model.norm)
    assert max(conv.groups for conv in spec.convs) == 2
    assert all(conv.pool_kernel > conv.pool_stride for conv in spec.convs if "pool" in conv.stages)
    lrn = apply_modifications(spec, r.model.spec_edits).lrn
    assert (lrn.size, lrn.alpha, lrn.beta, lrn.k, lrn.towers) == (9, 1e-3, 0.75, 1.0, 2)
    assert r.data.std == (1 / 255,) * 3  # inputs are levels of 0 to 255
    assert (r.model.norm, r.model.dropout, r.optimization.momentum, r.schedule.kind) == ("lrn", 0.5, 0.9, "step")
    assert r.optimization.label_smoothing == 0
    assert r.run.precision != "auto"  # which may differ between the arms


def test_the_race_is_between_networks_of_four_layers():
    for name in ("relu-vs-tanh", "relu-vs-sigmoid"):
        recipe = arm_recipe(CLAIMS[name].part, base_recipe(data=Path("images")))
        spec = apply_modifications(architecture("cifar-towers", norm="none", dropout=0.0), recipe.model.spec_edits)
        kinds = [(layer.kind, layer.output) for layer in layers(spec)]
        assert [k for k, _ in kinds if k in ("conv", "linear")] == ["conv"] * 3 + ["linear"]
        assert ("avgpool", (64, 4, 4)) in kinds
        assert sum(layer.parameters for layer in layers(spec)) == 2432 + 25632 + 51264 + 10250
        assert (recipe.optimization.weight_decay, recipe.augmentation.crop, recipe.augmentation.flip) == (
            0,
            "none",
            False,
        )


@pytest.mark.parametrize("name", ["lrn", "two-towers", "tower-talk", "dropout", "init", "batchnorm"])
def test_a_base_with_towers_is_kept(name):
    base = base_recipe("imagenet-2012", Path("imagenet"))
    claim = CLAIMS[name]
    for arm in (claim.part, claim.without):
        recipe = arm_recipe(arm, base)
        named = set(arm.settings)
        assert {key for key, value in recipe.as_dict().items() if value != base.as_dict()[key]} <= named
        assert recipe.model.arch == "code2012"


def test_a_misspelled_claim_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'lrn'"):
        find_claim("lnr")
