"""Job 2: the bits of each layer, chosen within budgets.

Read the files in this order: ``loss`` defines the loss, and ``whole`` measures that of a graph in its place;
``sensitivity`` measures the loss and the costs of each set of layers, whose ``leaders`` have one weight, at the
``schemes`` of a graph, ``recurrent`` those of LSTM, GRU and RNN, ``activations`` those of tensors, and ``weights``
those of weights alone, by ``gradients``; ``graphs`` opens the bodies of If, Loop and Scan, and ``shared`` joins the
sets of weights that several graphs read; ``latency`` and ``latency_table`` find their time; ``bits`` names simple
choices for all sets; ``assemble`` builds and measures the model of a choice; ``program`` solves for the best choice
within budgets, and ``allocate`` checks it on the assembled model; ``choose`` resolves the budgets and makes the plan;
``run`` connects them.
"""
