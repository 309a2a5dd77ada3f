"""From files to rows of tokens: sources, formats, templates, the token cache, packing and order."""
