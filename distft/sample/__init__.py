"""The embedded sample: the help desk of Larkmoor, an invented maker of electric bikes."""
