"""`sparsemm recipe show`: prints the method that was found for a model, and why."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsemm.commands import Commands, command, group
from sparsemm.errors import DataError


def add(commands: Commands) -> None:
    """Adds `recipe show`."""
    recipe = group(commands, "recipe", "recipes: the best method for a model", "show tiny-qwen2-vl")
    text = "the method for each scenario, why, and the evidence"
    show = command(recipe, "show", run_show, text, "recipe show tiny-qwen2-vl")
    show.add_argument("recipe", help="model key, a file, or models:/visual-heads.<key>@champion")


def run_show(args: argparse.Namespace) -> None:
    """Prints one recipe."""
    from sparsemm.recipes import Recipe
    from sparsemm.registry.lookup import is_address

    if is_address(args.recipe):
        from sparsemm.commands.registry import look_up_source

        recipe = look_up_source(args.recipe, args).table.recipe
        if recipe is None:
            raise DataError("this version has no recipe", where=args.recipe, hint="run the tune stage, publish again")
    else:
        path = Path(args.recipe)
        stored = args.root / "artifacts" / "recipes" / f"{args.recipe}.json"
        named = path.suffix == ".json" or path.is_file()
        if not named and not stored.is_file():
            keys = ", ".join(sorted(one.stem for one in stored.parent.glob("*.json"))) or "none yet"
            hint = f"known: {keys}; `sparsemm tune KEY` makes one"
            raise DataError(f"no recipe of a model {args.recipe!r}", where=str(stored.parent), hint=hint)
        recipe = Recipe.load(path if named else stored)
    print(recipe.show())
