"""Job 2: the bits of each layer, chosen within budgets.

Read the files in this order: ``loss`` defines the loss; ``sensitivity`` measures the loss and the costs of each set of
layers, ``activations`` those of tensors, and ``weights`` those of weights alone, by ``gradients``; ``latency`` and
``latency_table`` find its time; ``bits`` names simple choices for all sets; ``assemble`` builds and measures the model
of a choice; ``program`` solves for the best choice within budgets, and ``allocate`` checks it on the assembled model;
``choose`` resolves the budgets and makes the plan; ``run`` connects them.
"""
