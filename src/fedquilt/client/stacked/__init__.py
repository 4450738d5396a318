"""Training of several clients side by side: their adapters are stacked over one base, and their rows are one batch."""
