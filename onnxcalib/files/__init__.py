"""Files that users name, and those that a run makes.

Read the files in this order. ``reading`` opens what users name: regular files alone, of a bounded size. ``scratch``
holds temporary files, which end with the run or, where it is killed, with the next one. ``writing`` replaces files
whole or not at all, several of them together.
"""
