"""Revisions of the schema. One that was released is never edited: its successor corrects it."""
