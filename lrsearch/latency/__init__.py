"""How long plans take: backends, micro-models, tables, whole models, other machines."""
