"""Plugin of Hydra: the sweeper of resnests."""
