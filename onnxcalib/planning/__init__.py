"""Job 2: the bits of each layer, chosen within budgets.

Read the files in this order: ``sensitivity`` measures what each set of layers loses and costs, ``latency`` and
``latency_table`` what time it takes, ``assemble`` builds whole models of choices, ``allocate`` solves for the choice,
``choose`` brings budgets into their units and makes the plan, ``run`` ties them.
"""
