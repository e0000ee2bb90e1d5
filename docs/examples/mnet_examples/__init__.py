"""Examples of an architecture, a file format and an image source in a package of their own."""
