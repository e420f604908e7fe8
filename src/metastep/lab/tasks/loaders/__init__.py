"""Readers of the standard formats on disk: encoded or raw images as uint8 arrays, text as tokens."""
