"""Where files come from: upstream, or a mirror that holds them under their own names."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from hpcasync.config.strict import usable_path
from hpcasync.errors import UserError


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch.

    Attributes:
        url: where it is upstream.
        name: what it is called on disk and on mirrors.
        digest: "sha256:..." or "md5:..." as published; None where nobody has published one.
    """

    url: str
    name: str
    digest: str | None


@dataclass(frozen=True)
class Mirror:
    """A directory or the beginning of a URL; neither: upstream."""

    directory: Path | None = None
    base_url: str | None = None

    @classmethod
    def parse(cls, text: str | None) -> "Mirror":
        """Understand `--mirror`: a directory, a file:// or an http(s):// URL."""
        if text is None:
            return cls()
        try:
            parts = urlsplit(text)
        except ValueError as error:
            raise UserError(f"--mirror {text}: {error}; give a directory or an http(s):// URL") from error
        if parts.scheme in ("http", "https") and parts.hostname:
            return cls(base_url=text.rstrip("/"))
        directory = usable_path(Path(unquote(parts.path) if parts.scheme == "file" else text))
        if not directory.is_dir():
            raise UserError(f"--mirror {text} is neither a directory nor an http(s):// URL")
        return cls(directory=directory)

    def locate(self, file: RemoteFile) -> Path | str:
        """The path or the URL of a file."""
        if self.base_url is not None:
            return f"{self.base_url}/{quote(file.name)}"
        if self.directory is None:
            return file.url
        path = self.directory / file.name
        if not path.is_file():
            raise UserError(f"--mirror {self.directory} has no file {file.name} (upstream: {file.url})")
        return path
