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
    assert recipes[0].schedule.epochs == recipes[1].schedule.epochs == base.schedule.epochs
    assert claim.statement.endswith(".")
    assert claim.source
    assert claim.published


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lrn", {"norm"}), ("overlapping-pool", {"spec_edits"}), ("weight-decay", {"weight_decay"}),
        ("dropout", {"dropout"}), ("pca-noise", {"pca_noise"}),
        ("augmentation", {"crop", "flip"}), ("two-towers", {"spec_edits"}), ("tower-talk", {"spec_edits"}),
        ("init", {"init"}),
        ("batchnorm", {"norm"}), ("depth", {"spec_edits"}), ("relu-vs-tanh", {"activation"}),
        ("momentum", {"momentum", "lr"}),
        ("nothing", set()), ("ten-crop", set()),
    ],
)  # fmt: skip
def test_arms_differ_in_nothing_else(name, settings):
    base = base_recipe(data=Path("images"))
    one, other = (json.loads(arm_recipe(arm, base).to_json()) for arm in (CLAIMS[name].part, CLAIMS[name].without))
    assert {key for key in one if one[key] != other[key]} == settings


@pytest.mark.parametrize("name", ["lrn", "two-towers", "tower-talk", "dropout", "init", "batchnorm"])
def test_a_base_with_towers_is_kept(name):
    base = base_recipe("imagenet-2012", Path("imagenet"))
    claim = CLAIMS[name]
    for arm in (claim.part, claim.without):
        recipe = arm_recipe(arm, base)
        named = {key for key, value in arm.settings.items() if not callable(value)}
        assert {key for key, value in recipe.as_dict().items() if value != base.as_dict()[key]} <= named
        assert recipe.model.arch == "code2012"


def test_a_misspelled_claim_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'lrn'"):
        find_claim("lnr")
