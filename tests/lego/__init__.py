"""Tests of projects/lego."""
