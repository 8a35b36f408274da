"""The paper's guarantees, measured on trained networks: exact features, least risks, certificates."""
