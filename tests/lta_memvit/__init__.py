"""Tests of projects/lta_memvit."""
