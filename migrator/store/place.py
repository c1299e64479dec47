"""Where the configuration says that the journal is."""

from __future__ import annotations

from migrator.settings.models import StoreSettings
from migrator.store.backend import Place, Server


def journal_place(store: StoreSettings) -> Place:
    """Return the file of ``[store] path``, or the server of ``[store] url``."""
    if not store.url:
        return store.path
    return Server(
        url=store.url,
        password=store.password.get_secret_value(),
        tls=store.tls,
        tls_ca=store.tls_ca,
        tls_certificate=store.tls_certificate,
        tls_key=store.tls_key,
        beside=store.path,
    )


def journal_name(store: StoreSettings) -> str:
    """Return the name of the journal for a person, without a secret."""
    return store.url or str(store.path)
