"""Tables, plots and an HTML page from finished or unfinished run folders; needs neither torch nor a model."""
