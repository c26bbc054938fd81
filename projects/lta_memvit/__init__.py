"""Long-term action anticipation on Ego4D with SlowFast, MViT and memory-augmented MViT."""
