"""Generated data sets: glyphs and arithmetic problems."""
