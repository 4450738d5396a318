"""The contract between a server, its clients and a method, and what every package builds on."""
