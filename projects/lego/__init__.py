"""LEGO: a frame of an action before it happens, from a frame, a few words and what a visual language model adds."""
