"""Guests that are saved in files, on the page: listed, loaded, saved and deleted."""

from __future__ import annotations

from playwright.sync_api import expect

from migrator.api.saved_documents import LoadableDocument, SavedGuestDocument, SavedGuestsDocument
from tests.page_browser import PHONE, ShownPage
from tests.service_thread import ServiceThread

#: One that can be loaded, one whose file is gone.
_SAVED = SavedGuestsDocument(
    items=[
        SavedGuestDocument(
            migration="m1",
            guest="u-1",
            guest_name="dora",
            host="alpha",
            file="/srv/saved/dora.state",
            state="saved",
            size_bytes=1 << 30,
            qemu_version="10.0.2",
            hosts=[
                LoadableDocument(host="alpha", loadable=False, reason="a disk is not there"),
                LoadableDocument(host="beta", loadable=True),
            ],
        ),
        SavedGuestDocument(
            migration="m2",
            guest="u-2",
            guest_name="emil",
            host="beta",
            file="/srv/saved/emil.state",
            state="missing",
            reason="there is no such file on beta",
        ),
    ]
)


def test_saved_guests_are_listed_and_loaded_where_they_can_be(operator: ShownPage, service: ServiceThread):
    page = operator.page
    page.route(
        "**/api/v1/saved",
        lambda route: route.fulfill(content_type="application/json", body=_SAVED.model_dump_json()),
    )
    operator.go("#/saved")
    expect(operator.row("emil")).to_contain_text("There is no such file on beta.")
    expect(operator.button("Load… emil")).to_have_attribute("title", "Not now: see its state")
    # Where there is no pointer to rest on it, pressing it says why.
    operator.button("Load… emil").press("Enter")
    expect(operator.row("emil").get_by_role("status")).to_have_text("see its state")
    assert operator.accessibility() == []
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    operator.button("Load… dora").click()
    loads = operator.sent("loads")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("On", exact=True).locator("option")).to_have_text(["beta"])
    dialog.get_by_role("button", name="Load dora on beta").click()
    expect(dialog).to_contain_text("not in this test")
    assert loads == [{"file": "/srv/saved/dora.state", "to": "beta", "accept": []}]


def test_a_saved_file_is_deleted_and_the_last_of_a_guest_only_said_twice(
    operator: ShownPage, service: ServiceThread
):
    page, (dora, _) = operator.page, _SAVED.items
    old = dora.model_copy(
        update={
            "migration": "m3",
            "guest_name": "otto",
            "file": "/srv/saved/otto.state",
            "state": "outdated",
            "reason": "the guest is on beta",
        }
    )
    listed = _SAVED.model_copy(update={"items": [*_SAVED.items, old]})
    page.route(
        "**/api/v1/saved",
        lambda route: route.fulfill(content_type="application/json", body=listed.model_dump_json()),
    )
    asked = operator.sent("discards")
    operator.go("#/saved")
    dialog = page.get_by_role("dialog")
    operator.button("Delete… dora").click()
    expect(dialog).to_contain_text("Nobody knows dora anywhere else: it is lost with this file.")
    expect(dialog.get_by_role("button", name="Delete the file of dora")).to_be_disabled()
    dialog.get_by_role("checkbox", name="Delete the last copy of dora").check()
    assert operator.accessibility() == []
    dialog.get_by_role("button", name="Delete the file of dora").click()
    expect(dialog).to_contain_text("not in this test")
    dialog.get_by_role("button", name="Back").click()
    operator.button("Forget… emil").click()
    dialog.get_by_role("checkbox", name="I have looked for the file").check()
    dialog.get_by_role("button", name="Take emil off the list").click()
    expect(dialog).to_contain_text("not in this test")
    dialog.get_by_role("button", name="Back").click()
    operator.button("Delete… otto").click()
    expect(dialog).to_contain_text("The guest is on beta. Nothing is lost with it.")
    dialog.get_by_role("button", name="Delete the file of otto").click()
    expect(dialog).to_contain_text("not in this test")
    assert asked == [
        {"file": "/srv/saved/dora.state", "host": "alpha", "only_copy": True},
        {"file": "/srv/saved/emil.state", "host": "beta", "only_copy": True},
        {"file": "/srv/saved/otto.state", "host": "alpha"},
    ]


def test_a_guest_is_saved_from_its_own_view(operator: ShownPage, service: ServiceThread):
    operator.go("#/guests?search=db")
    operator.page.get_by_role("link", name="db", exact=True).click()
    saves = operator.sent("saves")
    operator.button("Save… db").click()
    dialog = operator.page.get_by_role("dialog")
    dialog.get_by_label("File on alpha, with its whole path").fill("/srv/saved/db.state")
    dialog.get_by_role("button", name="Stop and save db").click()
    expect(dialog).to_contain_text("not in this test")
    assert saves == [{"guest": service.guest("db").uuid, "file": "/srv/saved/db.state", "accept": []}]
