"""From raw scores to ratings: monotone maps on few labels, what they are worth, and the bundles that carry them."""
