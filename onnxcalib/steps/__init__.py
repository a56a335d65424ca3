"""The steps of a run, one verb a file."""
