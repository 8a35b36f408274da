"""The paper's guarantees, measured on trained networks."""
