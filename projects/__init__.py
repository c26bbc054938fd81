"""Five reproductions, each independent of the others."""
