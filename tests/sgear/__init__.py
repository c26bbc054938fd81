"""Tests of S-GEAR."""
