"""Who may do what, on every lane: what an adversarial review found, each as the answer that is due."""
