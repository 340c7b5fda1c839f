"""Reads a JSON object piece by piece, so that a file of half a gigabyte never stands in memory as Python objects."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from recollect.data.findings import DataError

CHUNK = 1 << 21
_SPACE = re.compile(r"[ \t\n\r]*")


def stream_object(path: Path, lists: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) for the members of the object in the file.

    A member whose key is in `lists` and whose value is a list comes item by item, as (key, item); an empty one whole.
    DataError naming the file and the place if it is not such an object.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from _members(_Window(file, path), lists)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _members(window: _Window, lists: Collection[str]) -> Iterator[tuple[str, Any]]:
    window.take("{", "an object with images, annotations and categories")
    if window.skip("}"):
        return window.end()
    while True:
        key = window.value()
        if not isinstance(key, str):
            window.fail("expected a key in quotes")
        window.take(":", "a colon after the key")
        if key in lists and window.skip("["):
            if window.skip("]"):
                yield key, []
            else:
                while True:
                    yield key, window.value()
                    if not window.skip(","):
                        break
                window.take("]", "a comma or the end of the list")
        else:
            yield key, window.value()
        if not window.skip(","):
            break
    window.take("}", "a comma or the end of the object")
    window.end()


class _Window:
    """A piece of the file, and the place in it."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self.file, self.path = file, path
        self.text, self.at, self.before, self.line = "", 0, 0, 1
        self.chunk = CHUNK
        self.whole = False  # nothing follows the window
        self.decode = json.JSONDecoder().raw_decode
        self.read()

    def read(self) -> None:
        more = self.file.read(self.chunk)
        self.whole = len(more) < self.chunk
        self.line += self.text.count("\n", 0, self.at)
        self.text = self.text[self.at :] + more
        self.before += self.at
        self.at = 0

    def space(self) -> None:
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if self.at < len(self.text) or self.whole:
                return
            self.read()

    def skip(self, sign: str) -> bool:
        """Step over the sign, if it comes next."""
        self.space()
        if self.text.startswith(sign, self.at):
            self.at += 1
            return True
        return False

    def take(self, sign: str, wanted: str) -> None:
        if not self.skip(sign):
            self.fail(f"expected {wanted}")

    def value(self) -> Any:
        """The next value of any type."""
        self.space()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # what is cut off by the window's end may be whole with more of the file
                cut = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated")
                if self.whole or not cut:
                    self.at = error.pos
                    self.fail(error.msg)
            except RecursionError:
                self.fail("lists or objects nested too deeply")
            except ValueError as error:
                self.fail(str(error))
            else:
                # a number may be cut as well: of 1.5e-7 the window may show 1.5, 1.5e or 1.5e-
                if end + 3 <= len(self.text) or self.whole:
                    self.at = end
                    self.chunk = CHUNK
                    return value
            self.chunk *= 2
            self.read()

    def end(self) -> None:
        self.space()
        if self.at < len(self.text):
            self.fail("something follows the object")

    def fail(self, message: str) -> Any:
        line = self.line + self.text.count("\n", 0, self.at)
        found = self.text[self.at : self.at + 30].split("\n")[0]
        found = f"found {found!r}" if found else "the file ends"
        place = f"line {line}, character {self.before + self.at}"
        raise DataError(f"{self.path}: not the JSON that it should be at {place}: {message}, {found}")
