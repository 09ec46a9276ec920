"""Runs that train and compare several recipes."""
