"""Turn run directories into tables, figures and a page. No torch."""
