"""Images: splits and pipelines."""
