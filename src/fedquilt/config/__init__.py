"""The run file: its schema, reading and checking it, and the settings of methods and schemes."""
