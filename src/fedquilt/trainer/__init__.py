"""A Hugging Face ``Trainer``, or one of TRL's, as a client of a federation: its script stays the user's own."""
