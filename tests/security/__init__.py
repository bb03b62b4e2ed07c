"""Who may do what, on every transport: what an adversarial review found, each as the answer that is
due.
"""
