"""Families of architectures: a module each that turns a configuration into shapes."""
