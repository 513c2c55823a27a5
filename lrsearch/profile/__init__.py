"""Everything expensive about a layer, computed once."""
