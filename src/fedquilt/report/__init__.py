"""Tables, plots and one page from finished or unfinished run folders; needs neither torch nor a model."""
