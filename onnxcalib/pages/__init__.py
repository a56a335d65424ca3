"""Reports as one page of HTML each, from their JSON alone: a page has nothing that the JSON has not.

Read the files in this order. ``content`` has the parts of which every page is made. ``verdict`` makes them of a
verdict, ``report`` of a report, ``plan`` of a bit plan and a frontier, and ``contents`` of what ``inspect`` found. They
share ``measures``, the table of ``layers``, ``histograms`` of these, and the graph in ``flow``. ``charts`` says how
plots are drawn, and ``page`` puts all into ``page.html`` with its style and script. ``script`` finds the plotting
library, Vega-Lite.
"""
