"""Recipes in the registry: published with their score table, judged, and looked up again."""

from __future__ import annotations

import pytest

from sparsemm.cli import main
from sparsemm.errors import RegistryError, RegistryUnreachable
from sparsemm.recipes import Recipe
from sparsemm.registry import lookup
from sparsemm.registry.client import connect, default_store
from sparsemm.registry.lookup import load_scores, look_up, resolve
from sparsemm.registry.promote import promote
from sparsemm.registry.publish import publish

ADDRESS = "models:/visual-heads.m@candidate"


def stored(made):
    return Recipe.load(made.root / "artifacts" / "recipes" / "m.json")


def test_a_recipe_is_published_and_comes_back_with_its_table(local, monkeypatch):
    made = local("m")
    made.tuned("m")
    version = publish(made.params, "m", made.root)
    uri = default_store(made.root)
    tags = connect(uri).get_model_version(version.name, version.version).tags
    assert tags["recipe"] == "known: sparsemm+peak; later: snapkv"
    assert load_scores(ADDRESS, tracking_uri=uri).recipe == stored(made)
    assert load_scores(ADDRESS, offline=True, tracking_uri=uri).recipe == stored(made)
    assert load_scores(made.root / "artifacts" / "scores" / "m.safetensors").recipe is None


def test_another_recipe_is_another_version_with_the_same_table(local):
    made = local("m")
    uri = default_store(made.root)
    resolved = []
    for options in (None, {"rho": 0.1}, {"rho": 0.2}):
        if options is not None:
            made.tuned("m", **options)
        publish(made.params, "m", made.root)
        assert not publish(made.params, "m", made.root).created
        resolved.append(resolve(ADDRESS, tracking_uri=uri))
    assert [one.version for one in resolved] == ["1", "2", "3"] and len({one.digest for one in resolved}) == 1
    assert resolved[0].recipe is None and len({one.recipe for one in resolved}) == 3
    assert look_up("models:/visual-heads.m/1", tracking_uri=uri).table.recipe is None
    assert look_up("models:/visual-heads.m/2", tracking_uri=uri).table.recipe.choice("known").options["rho"] == 0.1


def test_a_recipe_that_is_worse_than_snapkv_does_not_become_champion(local):
    made = local("m")
    for verdict, moved in (("worse", False), ("better", True)):
        made.tuned("m", verdict)
        version = publish(made.params, "m", made.root)
        promotion = promote(made.params, "m", made.root)
        assert promotion.moved == moved and (promotion.version == version.version)
        reasons = [one for one in promotion.verdict.reasons if "recipe" in one]
        assert reasons[0].startswith("pass" if moved else "FAIL")


def test_a_recipe_of_other_scores_is_not_published(local):
    made = local("m")
    made.tuned("m")
    recipe = made.root / "artifacts" / "recipes" / "m.json"
    content = recipe.read_bytes()
    made.ran("m", seed=1, noise=0.1)
    with pytest.raises(RegistryError, match=r"tune@m ran on an older artifacts/scores/m\.safetensors"):
        publish(made.params, "m", made.root)
    made.tuned("m")
    recipe.write_bytes(content)
    with pytest.raises(RegistryError, match="differs from what the stage wrote"):
        publish(made.params, "m", made.root)
    made.raw["tune"]["samples"] = 30
    made.tuned("m")
    with pytest.raises(RegistryError, match="tune@m ran with another value of tune"):
        publish(made.params, "m", made.root)


def test_a_damaged_recipe_in_the_cache_is_fetched_again(local, monkeypatch):
    made = local("m")
    made.tuned("m")
    publish(made.params, "m", made.root)
    uri = default_store(made.root)
    load_scores(ADDRESS, tracking_uri=uri)
    (file,) = (lookup.cache_home() / "scores" / "recipes").glob("*.json")
    for content in (b"{}", b""):
        file.write_bytes(content)
        with pytest.raises(RegistryUnreachable, match="damaged"):
            load_scores(ADDRESS, tracking_uri=uri, offline=True)
        assert load_scores(ADDRESS, tracking_uri=uri).recipe == stored(made)


def test_a_version_whose_tag_names_another_recipe_is_refused(local):
    made = local("m")
    made.tuned("m")
    version = publish(made.params, "m", made.root)
    client = connect(default_store(made.root))
    client.set_model_version_tag(version.name, version.version, "recipe_sha256", "0" * 64)
    with pytest.raises(RegistryError, match="different files"):
        load_scores(ADDRESS, tracking_uri=default_store(made.root))
    client.set_model_version_tag(version.name, version.version, "recipe_sha256", "../0")
    with pytest.raises(RegistryError, match="not created by"):
        load_scores(ADDRESS, tracking_uri=default_store(made.root))


def test_the_command_shows_a_published_recipe(local, capsys):
    made = local("m")
    command = ["--params", str(made.root / "params.yaml"), "--root", str(made.root)]
    publish(made.params, "m", made.root)
    assert main([*command, "recipe", "show", ADDRESS]) == 1 and "no recipe" in capsys.readouterr().err
    made.tuned("m")
    publish(made.params, "m", made.root)
    assert main([*command, "recipe", "show", ADDRESS]) == 0 and "sparsemm+peak won" in capsys.readouterr().out
    assert main([*command, "lookup", ADDRESS]) == 0
    assert "recipe: {'known': 'sparsemm+peak', 'later': 'snapkv'}" in capsys.readouterr().out
