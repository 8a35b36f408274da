"""Make tables, figures and a page from run directories. No torch."""
