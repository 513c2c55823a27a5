"""Records → tables, figures, pages."""
