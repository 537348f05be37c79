"""Scoring many images: parts of a listing in, a file of rows for each out, on this machine or on a cluster."""
