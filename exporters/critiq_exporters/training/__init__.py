"""The recipe of the built-in model: pairs without labels, training, export, evaluation."""
