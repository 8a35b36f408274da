"""Register the sweeper of resnests as a plugin of Hydra."""
