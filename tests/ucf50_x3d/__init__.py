"""Tests of projects/ucf50_x3d."""
