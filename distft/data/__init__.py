"""The data pipeline: sources, record formats, chat templates, token cache, packing, order."""
