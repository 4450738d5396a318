"""The run file: what it may say (schema), how it is read (load), how its free keys meet a factory (build)."""
