"""The files of the configuration: read, with all that they include, and their tables named; values are not checked."""

from __future__ import annotations

import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from migrator.settings import words
from migrator.settings.configuration import REPEATED, SECTIONS
from migrator.text import shortened

#: Of one file; a thousand hosts take a tenth of it.
_LARGEST_FILE_BYTES = 4 << 20

#: A file (``None``: there is none), and what is in it.
Tables = tuple[Path | None, dict[str, Any]]


class Files:
    """Reads them.

    :param problems: gets a line for everything that is wrong.
    """

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems
        #: Where relative paths start that no file has: those of variables.
        self.directory = Path.cwd()

    def read(self, path: Path | None) -> list[Tables]:
        """The main file first, then what it includes; nothing when the main file cannot be read."""
        main = {} if path is None else self._read(path)
        if main is None:
            return []
        if path is not None:
            self.directory = path.absolute().parent
        files = [(path, main), *self._included(path, main)]
        for file, data in files:
            self._known_tables(file, data, main=file is path)
        return files

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                self._problems.append(f"{path}: is no regular file")
            elif status.st_size > _LARGEST_FILE_BYTES:
                self._problems.append(f"{path}: is larger than {_LARGEST_FILE_BYTES >> 20} MiB")
            else:
                return tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            self._problems.append(f"{path}: cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            self._problems.append(f"{path}: is not UTF-8")
        except RecursionError:
            self._problems.append(f"{path}: lists or tables in it are nested too deep")
        except (
            ValueError
        ) as error:  # TOMLDecodeError, and what Python says of a number of thousands of digits
            said = shortened(str(error))[1:-1]
            self._problems.append(f"{path}: is no TOML: {said[:1].lower()}{said[1:]}")
        return None

    def _included(
        self, path: Path | None, main: dict[str, Any]
    ) -> Iterator[tuple[Path | None, dict[str, Any]]]:
        patterns = main.get("include", [])
        if not isinstance(patterns, list) or not all(isinstance(each, str) and each for each in patterns):
            self._say(path, "include", 'is a list of patterns: include = ["hosts.d/*.toml"]')
            return
        for pattern in patterns:
            base, relative = self.directory, pattern
            if pattern.startswith("/"):
                base, relative = Path("/"), pattern.lstrip("/")
            if "**" in relative:  # it may walk through all that the machine has
                self._say(path, "include", f"{shortened(pattern)}: name each directory instead of **")
                continue
            try:
                found = sorted(base.glob(relative))
            except (ValueError, LookupError, NotImplementedError, RecursionError, OSError) as error:
                self._say(path, "include", f"{shortened(pattern)} is no pattern of files: {error}")
                continue
            for file in found:
                if not file.is_dir() and (data := self._read(file)) is not None:
                    yield file, data

    def _known_tables(self, file: Path | None, data: dict[str, Any], *, main: bool) -> None:
        for name, value in data.items():
            if name in SECTIONS and not main:
                self._say(
                    file, name, "can only be in the main file; included files take " + ", ".join(REPEATED)
                )
            elif name not in SECTIONS and name not in REPEATED and name != "include":
                self._say(file, name, words.unknown(name, [*SECTIONS, *REPEATED, "include"], "section"))
            elif name in (*SECTIONS, "policies", "groups") and not isinstance(value, dict):
                self._say(file, name, f"is a section: write [{name}]")

    def entries(
        self, file: Path | None, data: dict[str, Any], name: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        entries = data.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            self._say(file, name, f"is a list of sections: write [[{name}]] before each")
            return
        for number, entry in enumerate(entries):
            yield f"{name}[{number}]", entry

    def _say(self, file: Path | None, key: str, what: str) -> None:
        self._problems.append(f"{words.place(file)}{key}: {what}")
