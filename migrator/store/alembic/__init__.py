"""The schema's history: one revision a file in ``versions``; run by :func:`migrator.store.schema.upgrade`."""
