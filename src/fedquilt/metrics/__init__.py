"""When an answer that a language model wrote is right."""
