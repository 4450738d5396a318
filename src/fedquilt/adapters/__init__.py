"""What is trained: low-rank adapters around linear modules, and their files."""
