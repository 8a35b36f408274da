"""Choose values on held-out images: Optuna proposes them, the sweep trains. No torch."""
