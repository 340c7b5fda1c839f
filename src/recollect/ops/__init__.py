"""Arithmetic with a plain-torch reference, and faster paths behind the same function where they pay."""
