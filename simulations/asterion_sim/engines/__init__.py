"""Engines: several ways to do the sites' local work on one machine, to the same numbers.

``sequential`` is the hospital's own step, site after site, and the oracle of the others.
``vectorised`` trains a chunk of sites as one batch; ``shared_base`` multiplies a wide layer's
common weight once for all of them. ``workers`` spreads chunks over processes or Ray actors, and
``probe`` measures which is fastest. An engine that cannot run a plan exactly refuses it.
"""
