"""The file of a migration, as the journal keeps it."""

from __future__ import annotations

from migrator.engine.migration.file_move import FileMove, FileUse


def test_what_an_older_version_does_not_know_is_kept_only_where_it_says_something() -> None:
    plain = FileMove(use=FileUse.SAVE, path="/srv/web.state")
    assert plain.fields() == {"use": "save", "path": "/srv/web.state"}
    stream = FileMove(use=FileUse.SAVE, path="/srv/web.state", as_stream=True)
    assert FileMove(**{**stream.fields(), "use": FileUse(stream.fields()["use"])}) == stream
