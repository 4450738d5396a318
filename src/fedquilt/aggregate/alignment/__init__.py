"""Alignment: reducing conflicts between the updates of groups of clients before they are averaged."""
