"""Tests in two and three processes."""
