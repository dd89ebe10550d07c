"""Tests and resampling on models and estimates."""
