"""One file for each notebook: its parameters, checked, and what they give, as rows.

Above everything else: only here, and in what surrounds a run, are networks and data sets names in texts.
"""
