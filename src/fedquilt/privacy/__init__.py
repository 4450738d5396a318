"""Client-level differential privacy: noise as a wrapper of any method, and its epsilon."""
