"""Tests of projects/actionformer."""
