"""A package: its shared service ends with its tests, not with the run."""
