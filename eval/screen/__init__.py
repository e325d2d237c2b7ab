"""Screen training techniques: variants of a recipe, trained with several seeds and tested against the recipe."""
