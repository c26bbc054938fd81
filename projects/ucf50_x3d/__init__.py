"""What is done in this clip? X3D and SlowFast fine-tuned on UCF50 and on EPIC-KITCHENS-100 frames."""
