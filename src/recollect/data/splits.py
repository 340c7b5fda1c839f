"""Small things that the readers share."""

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation")}


def plain_number(value: float) -> str:
    """A number without needless digits: 12 for 12.0, else as short as it can be read back exactly."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
