"""How good are generated frames? The published scores, each from the weights that define it."""
